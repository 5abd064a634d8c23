"""The command itself: help and refusals at once, and, marked slow, whole runs on the sample that end in a document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from vitrify.bench.cli import bench
from vitrify.bench.document import read_document
from vitrify.bench.peers.registry import PEERS, absence
from vitrify.engine.errors import BackendError

ROOT = Path(__file__).parents[2]
SAMPLE = str(ROOT / "examples" / "emoji_flux")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("run", "--threads"),
        ("run", "--base-python"),
        ("export", "--json"),
        ("startup", "--json"),
        ("ops", "--level"),
        ("skips", "--rounds"),
        ("compare", "--margin"),
        ("compare", "--picture-margin"),
        ("report", "--html"),
    ],
)
def test_every_command_explains_itself(command: str, option: str) -> None:
    result = CliRunner().invoke(bench, [command, "--help"])
    assert result.exit_code == 0
    assert option in result.output


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["run", "--case", "x"], "flux-146m"),
        (["run", "--peer", "x"], "plain-ort"),
        (["startup", "--case", "x"], "flux-146m"),
        (["export", "--case", "x"], "wide-whole"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments: list[str], known: str) -> None:
    result = CliRunner().invoke(bench, arguments)
    assert result.exit_code == 2
    assert known in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--artifact", SAMPLE], "--source"),
        (["--artifact", SAMPLE, "--source", SAMPLE, "--case", "sample"], "--case"),
        (["--prompt", "red apple"], "--artifact"),
        (["--base-artifact", SAMPLE], "--artifact alone"),
        (["--base-python", sys.executable], "--base-json"),
        (["--base-python", sys.executable, "--base-json", "base.json"], "--json"),
        (["--base-json", "base.json"], "--base-python"),
        (["--base-python", sys.executable, "--base-json", "x.json", "--json", "x.json"], "the same file"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(bench, ["run", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def test_another_folder_than_the_sample_is_refused_by_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, ["startup", "--case", "sample", "--sample", str(tmp_path), "--cache", str(tmp_path / "c")])
    assert isinstance(result.exception, BackendError)
    assert "--sample" in str(result.exception)


def test_a_base_without_vitrify_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named vitrify' >&2\nexit 1\n")
    python.chmod(0o755)
    files = ["--json", str(tmp_path / "new.json"), "--base-json", str(tmp_path / "base.json")]
    arguments = ["run", "--base-python", str(python), *files, "--sample", str(tmp_path), "--cache", str(tmp_path / "c")]
    result = CliRunner().invoke(bench, arguments)
    assert isinstance(result.exception, BackendError)
    assert f"{python} must have vitrify with the extras cpu and export" in str(result.exception)
    assert "No module named vitrify" in str(result.exception)
    assert not (tmp_path / "c").exists()


def test_listing_commands_imports_no_peer() -> None:
    code = "import sys, vitrify.bench.cli; print([m for m in ('torch', 'onnxruntime', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_the_sample(tmp_path: Path) -> None:
    out, page = tmp_path / "run.json", tmp_path / "run.html"
    arguments = [
        "run",
        "--case",
        "sample",
        "--rounds",
        "2",
        "--most",
        "2",
        "--runs",
        "1",
        "--sample",
        SAMPLE,
        "--html",
        str(page),
    ]
    result = CliRunner().invoke(
        bench, [*arguments, "--cache", str(tmp_path / "cache"), "--json", str(out)], catch_exceptions=False
    )
    assert result.exit_code == 0
    run = read_document(out).run
    assert run.limits.keys() >= {"matrix product, float32", "matrix product, bfloat16"}
    assert any(name.startswith("registers, float32") for name in run.limits)
    (case,) = run.cases
    known = {name for name, spec in PEERS["step"].items() if absence(spec) is None}
    assert set(case.checks) == known
    assert case.peers.keys() >= {"vitrify", "plain-ort", "eager-fp32", "eager-bf16"}
    assert case.counts["vitrify"]["engine calls, transformer/rest"] == 1
    assert "<svg" in page.read_text()
    assert case.checks["vitrify"].relative < 1e-5
    assert set(case.peers["vitrify"].parts) == {
        "condition, per step",
        *(f"transformer/{segment}" for segment in ("embed", "first", "rest", "finish")),
        "outside plan.run()",
    }
    assert case.loop is not None
    assert 0 < case.loop.loop_outside.median < 0.5
    assert case.loop.graphs.keys() >= {"text_encoder/model", "transformer/condition", "transformer/rest", "vae/model"}
    text = out.read_text()
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_beside_its_base(tmp_path: Path) -> None:
    base, new = tmp_path / "base.json", tmp_path / "new.json"
    folders = ["--sample", SAMPLE, "--cache", str(tmp_path / "cache")]
    rounds = ["--rounds", "10", "--most", "10", "--runs", "0", "--no-limits"]
    arguments = ["run", "--case", "sample", "--peer", "vitrify", *rounds, *folders, "--json", str(new)]
    arguments += ["--base-python", sys.executable, "--base-json", str(base)]
    assert CliRunner().invoke(bench, arguments, catch_exceptions=False).exit_code == 0
    before, after = read_document(base), read_document(new)
    assert before.run_id == after.run_id
    assert before.machine == after.machine
    (old,), (now,) = before.run.cases, after.run.cases
    assert old.peers.keys() == now.peers.keys() == {"vitrify", "plain-ort"}
    assert old.peers["vitrify"] != now.peers["vitrify"]
    assert old.peers["plain-ort"] == now.peers["plain-ort"]
    assert old.counts == now.counts
    assert old.counts["vitrify"]["artifact bytes, weights"] > 1e6
    result = CliRunner().invoke(bench, ["compare", str(base), str(new), "--all", "--margin", "1"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "vitrify ÷" not in result.output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_start_up_of_the_sample(tmp_path: Path) -> None:
    out = tmp_path / "startup.json"
    arguments = ["startup", "--case", "sample", "--sample", SAMPLE, "--cache", str(tmp_path / "cache"), "--json", str(out)]
    assert CliRunner().invoke(bench, arguments, catch_exceptions=False).exit_code == 0
    (found,) = json.loads(out.read_text())["results"]
    assert 0 < found["import_s"] <= found["import_load_s"]
    assert found["ready_s"] < found["process_s"]
    assert found["opened_anonymous"] > found["library_anonymous"]
    assert found["weights_bytes"] > 30e6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_plan_is_watched(tmp_path: Path) -> None:
    out = tmp_path / "growth.json"
    arguments = ["export", "--case", "plan-quarter", "--cache", str(tmp_path / "cache"), "--json", str(out)]
    assert CliRunner().invoke(bench, arguments, catch_exceptions=False).exit_code == 0
    (found,) = json.loads(out.read_text())["results"]
    assert found["source_bytes"] is None
    assert 100e6 < found["peak_anonymous_bytes"] < 1.5e9
