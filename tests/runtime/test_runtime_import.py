"""What the runtime may load: never torch or a compiler, and nothing heavy before an artifact is opened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitrify.runtime

FORBIDDEN = ("torch", "onnx", "onnxscript", "triton", "diffusers", "transformers", "tensorrt_rtx_bindings")


def run(code: str, *arguments: str) -> str:
    """stdout of `code` in a fresh interpreter that finds what this one finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    modules = set(run("import sys, vitrify.runtime; print(*sys.modules)").split())
    assert not modules & {*FORBIDDEN, "onnxruntime", "numpy", "tokenizers", "PIL"}


def test_every_public_name_loads_without_torch_or_onnxruntime() -> None:
    code = "import sys, vitrify.runtime as r; [getattr(r, n) for n in r.__all__]; import vitrify.runtime.cli; print(*sys.modules)"
    assert not set(run(code).split()) & {*FORBIDDEN, "onnxruntime"}


def test_a_whole_request_runs_without_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tests.runtime.toy_flux import make_toy
print(make_toy(Path({str(tmp_path)!r})).pipe("cat", seed=1).images[0].size)
assert not set({FORBIDDEN}) & set(sys.modules), sorted(set({FORBIDDEN}) & set(sys.modules))
"""
    assert run(code) == "(16, 16)"


def test_public_names() -> None:
    assert sorted(vitrify.runtime.__all__) == vitrify.runtime.__all__ == dir(vitrify.runtime)
    from vitrify.runtime import load

    assert callable(load)
    assert load is vitrify.runtime.load
    with pytest.raises(AttributeError, match="has no attribute 'save'"):
        vitrify.runtime.save  # noqa: B018


def test_load_stays_a_function_whichever_module_comes_first() -> None:
    assert run("import vitrify.runtime.cli; from vitrify.runtime import load; print(callable(load))") == "True"
