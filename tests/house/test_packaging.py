"""What is installed and what the repository promises about itself."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "kernels", "export", "runtime", "bench")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_name(name): version for name, version in pins}


def test_every_room_is_installed() -> None:
    assert PROJECT["tool"]["scikit-build"]["wheel"]["packages"] == {f"vitrify/{room}": room for room in ROOMS}


def test_installed_commands_are_those_of_the_project() -> None:
    declared = PROJECT["project"]["entry-points"]["vitrify.commands"]
    assert {entry.name: entry.value for entry in entry_points(group="vitrify.commands")} == declared


def test_cpu_and_cuda_exclude_each_other() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    owners = {extra for extra, wanted in extras.items() if any(_name(w).startswith("onnxruntime") for w in wanted)}
    assert owners == {"cpu", "cuda"}


def test_every_requirement_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = {_name(w) for part in (PROJECT["project"]["dependencies"], *extras.values()) for w in part}
    # torch's CUDA build pins its own triton.
    assert wanted - {"triton"} <= set(_constraints())


def test_pins_resolve_on_any_index() -> None:
    assert [pin for pin in _constraints().items() if "+" in pin[1] or "@" in pin[1]] == []


def test_torch_is_pinned_alike_everywhere() -> None:
    assert f"torch=={_constraints()['torch']}" in PROJECT["project"]["optional-dependencies"]["export"]


def test_import_vitrify_runtime_leaves_the_compilers_out() -> None:
    heavy = "{'torch', 'onnx', 'onnxscript', 'triton', 'diffusers', 'transformers'}"
    program = f"import sys, vitrify.runtime; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
