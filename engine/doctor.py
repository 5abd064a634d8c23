"""`vitrify doctor`: what this installation consists of, and what is wrong with it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TypeVar

import click

from vitrify.engine import native_library
from vitrify.engine.errors import BackendError
from vitrify.engine.ort import installed_flavour

__all__ = ["Diagnosis", "diagnose", "doctor"]

_T = TypeVar("_T")

_PROBLEM_EXIT_CODE = 6


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    packages: distributions that the base needs → version, None if missing.
    extras: extra → its distributions in the same form.
    onnxruntime: "onnxruntime 1.32.0", or None.
    native_library: the op library's file, or None. native_ops: op → version.
    cpu_level: whose kernels run, of cpu_levels, those this machine has.
    gpu_kernels: why the op library has none for CUDA; "" where it has.
    problems: one sentence each, with the command that mends it.
    """

    vitrify: str
    python: str
    machine: str
    packages: dict[str, str | None]
    extras: dict[str, dict[str, str | None]]
    onnxruntime: str | None
    native_library: str | None
    native_ops: dict[str, int] = field(default_factory=dict)
    cpu_level: str | None = None
    cpu_levels: tuple[str, ...] = ()
    gpu_kernels: str = ""
    problems: tuple[str, ...] = ()


def diagnose() -> Diagnosis:
    """Look at this installation. Imports none of the heavy libraries: it asks for their versions alone."""
    problems: list[str] = []
    base, extras = _requirements()
    packages = {name: _version(name) for name in base}
    problems += [f"{name} is missing; run: pip install vitrify" for name, found in packages.items() if found is None]

    flavour = _or_problem(installed_flavour, problems)
    library = native_library.path()
    ops: dict[str, int] | None = {}
    if library is not None:
        ops = _or_problem(native_library.ops, problems)
    loaded = library is not None and ops is not None
    return Diagnosis(
        vitrify=metadata.version("vitrify"),
        python=platform.python_version(),
        machine=f"{platform.system()} {platform.machine()}",
        packages=packages,
        extras={extra: {name: _version(name) for name in names} for extra, names in extras.items()},
        onnxruntime=f"{flavour} {metadata.version(flavour)}" if flavour else None,
        native_library=str(library) if library else None,
        native_ops=ops or {},
        cpu_level=native_library.cpu_level() if loaded else None,
        cpu_levels=native_library.cpu_levels() if loaded else (),
        gpu_kernels=native_library.gpu_status() if loaded else "no native library",
        problems=tuple(problems),
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Print versions, backends, the native library and what is missing.

    Exits with 6 if something is wrong; an extra that is not installed is not wrong.
    """
    found = diagnose()
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        click.echo(_table(found))
    if found.problems:
        ctx.exit(_PROBLEM_EXIT_CODE)


def _table(found: Diagnosis) -> str:
    def versions(packages: dict[str, str | None]) -> str:
        return ", ".join(f"{name} {version or '(missing)'}" for name, version in packages.items())

    library = found.native_library or "none: the ops run as their bodies of standard ops"
    rows = [
        ("vitrify", found.vitrify),
        ("python", f"{found.python}, {found.machine}"),
        ("packages", versions(found.packages)),
        ("onnxruntime", found.onnxruntime or "none"),
        ("native library", library),
    ]
    if found.native_ops:
        rows.append(("native ops", ", ".join(f"{name} {version}" for name, version in found.native_ops.items())))
        rows.append(("cpu level", f"{found.cpu_level} of {', '.join(found.cpu_levels)}"))
        rows.append(("gpu kernels", found.gpu_kernels or "ready"))
    for extra, packages in found.extras.items():
        complete = all(packages.values())
        rows.append(
            (f"extra {extra}", versions(packages) if complete else f"{versions(packages)}: pip install 'vitrify[{extra}]'")
        )
    rows += [("problem", problem) for problem in found.problems]
    width = max(len(name) for name, _text in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The names of the base's and of each extra's distributions, from the package's own metadata."""
    base: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("vitrify") or []:
        name_match, extra_match = re.match(r"[A-Za-z0-9._-]+", line), re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if name_match is None:
            continue
        if extra_match is None:
            base.append(name_match[0])
        elif extra_match[1] not in ("dev", "cpu", "cuda"):
            # dev is no concern of a user's; cpu and cuda are the row `onnxruntime`.
            extras.setdefault(extra_match[1], []).append(name_match[0])
    return base, extras


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _or_problem(ask: Callable[[], _T], problems: list[str]) -> _T | None:
    try:
        return ask()
    except BackendError as error:
        problems.append(str(error))
        return None
