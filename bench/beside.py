"""What ours is held against in one run: another installation of vitrify, another artifact or both, called its base.

Ours ÷ a peer drifts by several per cent within a day on one machine with no line changed. What a change does is known better
from the same software without it in the same rounds, where whatever the machine does befalls both.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vitrify.bench.artifact_cases import artifact_cases
from vitrify.bench.jobs import run_code
from vitrify.bench.machine import Machine
from vitrify.bench.peers.registry import OURS, base_of, is_base, is_ours
from vitrify.bench.prepare import GivenModel
from vitrify.bench.results import CaseResult
from vitrify.engine.errors import BackendError, RequestError, SpecError

__all__ = ["Base", "Installed", "apart", "check_same_cases", "installed"]

# Text and not a module, for an older vitrify must answer, too.
_INSTALLED = """
import hashlib, importlib.util, json, pathlib
from vitrify.bench.machine import this_machine
total, folders = hashlib.sha256(), []
for room in ("engine", "kernels", "export", "runtime", "bench"):
    folder = pathlib.Path(importlib.util.find_spec("vitrify." + room).origin).parent
    folders.append(str(folder))
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".so"):
            total.update((room + "/" + path.relative_to(folder).as_posix()).encode() + path.read_bytes())
print(json.dumps({"machine": this_machine().to_json(), "digest": total.hexdigest(), "folder": folders[0]}))
"""
_ENGINES = ("onnxruntime", "onnxruntime-gpu")
_COMPILING = ("diffusers", "onnx", "torch")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Installed:
    """A vitrify. machine: this one, with its interpreter's packages. digest: of sources and libraries. folder: of `engine`."""

    machine: Machine
    digest: str
    folder: Path


def installed(python: str = sys.executable, *, compiles: bool = True) -> Installed:
    """The vitrify that `python` imports. compiles: whether it is to export, too.

    Raises BackendError if there is none, or if it lacks what that takes.
    """
    wanted = f"{python} must have vitrify with the extra{'s cpu and export' if compiles else ' cpu'}"
    try:
        answer = run_code(_INSTALLED, python=python, threads=1)
        found = Installed(Machine.from_json(answer["machine"]), answer["digest"], Path(answer["folder"]))
    except (BackendError, SpecError) as error:
        raise BackendError(f"{wanted}, but: {error}") from None
    packages = found.machine.packages
    missing = [name for name in _COMPILING if compiles and name not in packages]
    if not any(name in packages for name in _ENGINES):
        missing.append(_ENGINES[0])
    if missing:
        raise BackendError(f"{wanted}, but lacks {', '.join(missing)}")
    return found


@dataclass(frozen=True)
class Base:
    """python: the interpreter whose vitrify it is. given: its model of a user's own; None: as ours."""

    python: str = sys.executable
    given: GivenModel | None = None


def check_same_cases(artifact: Path, base: Path) -> None:
    """Raises RequestError, naming what differs, unless both artifacts make the same cases: else the base would run at sizes or
    with defaults that it was not compiled for."""
    for ours, theirs in zip(artifact_cases(artifact, ()), artifact_cases(base, ()), strict=True):
        differing = [name for name in vars(ours) if getattr(ours, name) != getattr(theirs, name)]
        if differing:
            said = "; ".join(f"{name}: {getattr(theirs, name)} there, {getattr(ours, name)} here" for name in differing)
            raise RequestError(f"{base}: another case than that of {artifact}: {said}; compile both with the same options")


def apart(measured: CaseResult) -> tuple[CaseResult, CaseResult]:
    """(ours and the other peers, the base of ours and the other peers) of a case in which ours had a base.

    The base's has no loop, for only ours' is measured.
    """
    names = [name for name in measured.checks if not is_base(name)]
    ours = _with(measured, {name: name for name in names})
    base = replace(_with(measured, {base_of(name) if is_ours(name) else name: name for name in names}), loop=None)
    # As with ours: without a number of its own, there is nothing that theirs could be compared with.
    return ours, base if base.checks[OURS].passed else replace(base, peers={})


def _with(measured: CaseResult, names: Mapping[str, str]) -> CaseResult:
    """Those peers alone that `names` has, under the names that it gives them."""

    def chosen(found: Mapping[str, Value]) -> dict[str, Value]:
        return {names[name]: value for name, value in found.items() if name in names}

    return replace(
        measured,
        checks=chosen(measured.checks),
        peers=chosen(measured.peers),
        counts=chosen(measured.counts),
        pictures=chosen(measured.pictures),
    )
