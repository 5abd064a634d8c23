"""`vitrify inspect`: what stands in the manifest is printed, with the sums that matter."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.engine.artifact_samples import WEIGHTS, build, sample_manifest
from vitrify.engine.artifact import Artifact, Manifest
from vitrify.engine.inspect_cli import Section, describe, inspect, print_sections, summarize
from vitrify.engine.specs import ParitySpec

LOOP = {"embed": 1_000, "first": 600_000_000, "rest": 8_000_000_000, "finish": 9_000_000}


def with_segments() -> Manifest:
    """A plan: FLUX-like segments, no files."""
    manifest = sample_manifest()
    transformer = manifest.components["transformer"]
    first = transformer.graphs["model"]
    sizes = {"condition": 3_290_000_000, **LOOP}
    graphs = {
        name: dataclasses.replace(first, path=f"transformer/{name}.onnx", parameters=n, parameter_bytes=2 * n)
        for name, n in sizes.items()
    }
    return dataclasses.replace(manifest, components={"transformer": dataclasses.replace(transformer, graphs=graphs)})


def section(manifest: Manifest, title: str) -> Section:
    return next(s for s in describe(manifest) if s.title.startswith(title))


def test_parameters_before_the_loop_and_in_it_are_summed_over_the_segments() -> None:
    sums = summarize(with_segments())["denoisers"]["transformer"]
    assert sums["parameters_before_loop"] == 3_290_000_000
    assert sums["parameters_in_loop"] == sum(LOOP.values())
    assert (sums["bytes_before_loop"], sums["bytes_in_loop"]) == (2 * 3_290_000_000, 2 * sum(LOOP.values()))
    before, inside = section(with_segments(), "denoiser").rows
    assert before == ("transformer", "before the loop, once per request", "condition", "3.29 B", "6.58 GB", "27.6%")
    assert inside == ("transformer", "in the loop, every step", "embed, first, rest, finish", "8.61 B", "17.22 GB", "72.4%")


def test_an_artifact_without_segments_has_no_denoiser_table() -> None:
    assert "denoiser" not in {s.title for s in describe(sample_manifest())}
    assert summarize(sample_manifest())["denoisers"] == {}


def test_every_row_is_as_long_as_its_heads_and_no_table_is_empty() -> None:
    for sections in (describe(with_segments()), describe(sample_manifest(), "id")):
        for s in sections:
            assert s.rows
            assert {len(row) for row in s.rows} == {len(s.columns)}


def test_a_plan_has_no_files_and_no_id() -> None:
    titles = {s.title for s in describe(with_segments())}
    assert "files" not in titles
    assert "id" not in {row[0] for row in section(with_segments(), "artifact").rows}
    assert section(with_segments(), "components").rows[0][-1] == "-"


def test_parity_shows_the_error_beside_its_tolerance_or_that_nobody_looked() -> None:
    manifest = sample_manifest()
    assert section(manifest, "parity").rows == (("transformer", "first (whole)", "2e-07", "1e-05"),)
    unchecked = dataclasses.replace(manifest.components["transformer"], parity=ParitySpec(checked=False))
    manifest = dataclasses.replace(manifest, components={"transformer": unchecked})
    assert section(manifest, "parity").rows == (("transformer", "not checked (--no-parity)", "-", "-"),)


def test_nested_values_are_printed_one_leaf_a_row() -> None:
    provenance = {
        "source": {"name": "flux", "files": [{"path": "a"}, {"path": "b"}]},
        "notes": ["block 0, text side", "x"],
        "none": {},
    }
    manifest = dataclasses.replace(sample_manifest(), provenance=provenance)
    assert section(manifest, "provenance").rows == (
        ("none", "{}"),
        ("notes", '["block 0, text side", "x"]'),
        ("source.files.0.path", "a"),
        ("source.files.1.path", "b"),
        ("source.name", "flux"),
    )


def test_the_command_prints_every_table_of_a_real_artifact(tmp_path: Path) -> None:
    artifact_id = build(tmp_path / "art")
    done = CliRunner().invoke(inspect, [str(tmp_path / "art")], catch_exceptions=False)
    assert done.exit_code == 0
    for words in (
        artifact_id,
        "FluxTransformer2DModel",
        "x: float32[batch, 4]",
        "ResidualDiff",
        "shift",
        "CLIPTokenizer",
        WEIGHTS,
    ):
        assert words in done.output
    for s in describe(Artifact.open(tmp_path / "art").manifest, artifact_id):
        assert s.title in done.output


def test_json_holds_the_manifest_the_id_and_sums_of_real_sizes(tmp_path: Path) -> None:
    artifact_id = build(tmp_path / "art")
    done = CliRunner().invoke(inspect, [str(tmp_path / "art"), "--json"], catch_exceptions=False)
    data = json.loads(done.output)
    assert data["id"] == artifact_id
    assert data["manifest"] == json.loads((tmp_path / "art" / "manifest.json").read_text())
    sizes = {str(p.relative_to(tmp_path / "art")): p.stat().st_size for p in (tmp_path / "art").rglob("*") if p.is_file()}
    assert data["files"]["weight_bytes"] == sizes[WEIGHTS]
    assert data["files"]["graph_bytes"] == sum(size for path, size in sizes.items() if path.endswith(".onnx"))
    assert data["files"]["all_bytes"] == sum(size for path, size in sizes.items() if not path.startswith("manifest."))


def test_text_that_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_sections(dataclasses.replace(sample_manifest(), provenance={"a": "[red]x[/red] :smile:"}))
    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_a_damaged_artifact_is_not_described(tmp_path: Path) -> None:
    build(tmp_path / "art")
    (tmp_path / "art" / WEIGHTS).unlink()
    assert CliRunner().invoke(inspect, [str(tmp_path / "art")]).exit_code != 0
