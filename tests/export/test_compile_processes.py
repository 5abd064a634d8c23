"""Exports in processes of their own: the same bytes whatever the process, and none half-written when one is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vitrify.engine.artifact import Artifact
from vitrify.export.compile import compile_pipeline

ROOT = Path(__file__).parents[2]

CHILD = """
import sys
from pathlib import Path
from vitrify.export import families
from vitrify.export.compile import compile_pipeline
families.SUPPORTED["ToyPipeline"] = "tests.export.toy_family"
def wait(*at):
    print(*at, flush=True)
    sys.stdin.readline()
print(compile_pipeline(Path(sys.argv[1]), Path(sys.argv[2]), progress=wait))
"""


def start(source: Path, out: Path, **environment: str) -> subprocess.Popen[str]:
    """An export that prints each phase and waits for a line before it begins it; at the end it prints the artifact's id."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path])), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=out.parent,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """The artifact's id."""
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return out.split()[-1]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("toy_supported")
def test_another_process_with_another_hash_seed_gives_the_same_bytes(toy_source: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(toy_source, tmp_path / "copy"))
    process = start(moved, tmp_path / "theirs", PYTHONHASHSEED="12345")
    ours = compile_pipeline(toy_source, tmp_path / "ours")
    assert finished(process) == ours
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")


@pytest.mark.slow
def test_an_export_killed_in_any_phase(toy_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "art"
    lines = start(toy_source, tmp_path / "expected").communicate(timeout=280)[0].splitlines()
    assert len(lines) == 10
    for phase in lines[:-1]:
        with start(toy_source, out) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            while process.stdout.readline().strip() != phase:
                process.stdin.write("\n")
                process.stdin.flush()
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not out.exists(), phase
    assert finished(start(toy_source, out)) == lines[-1]
    assert files(out) == files(tmp_path / "expected")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["art", "expected"]
    assert Artifact.open(out, verify="full").id == lines[-1]
