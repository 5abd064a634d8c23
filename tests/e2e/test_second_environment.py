"""A machine that only draws: a virtual environment with `vitrify[cpu]` alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Case

_ROOT = Path(__file__).parents[2]


def _run(*command: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generate_with_vitrify_cpu_alone(sample: Case, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", str(venv), cwd=tmp_path)
    _run(str(venv / "bin/pip"), "install", "-q", "-c", str(_ROOT / "constraints.txt"), f"{_ROOT}[cpu]", cwd=tmp_path)
    installed = _run(str(venv / "bin/pip"), "list", "--format=freeze", cwd=tmp_path).lower()
    heavy = [n for n in ("torch", "onnx==", "triton", "diffusers", "transformers") if f"\n{n}" in f"\n{installed}"]
    assert not heavy
    picture = tmp_path / "apple.png"
    program = str(venv / "bin/vitrify")
    _run(program, "generate", str(sample.artifact), "red apple", "--seed", "1", "--steps", "4", "-o", str(picture), cwd=tmp_path)
    ours = sample.pipe("red apple", seed=1, num_inference_steps=4)
    ours.save(tmp_path / "here.png")
    assert picture.read_bytes() == (tmp_path / "here.png").read_bytes()
