"""Every op's program and every kernel, collected from the folders of `kernels/`. Nothing here needs Triton."""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache

from vitrify.engine.errors import SpecError
from vitrify.kernels import registry
from vitrify.kernels.aot.description import Kernel, Program, Variant
from vitrify.kernels.aot.targets import ARCH_NAMES
from vitrify.kernels.aot.tiles import built

__all__ = ["kernels", "programs", "variants"]


@lru_cache(maxsize=1)
def programs() -> dict[str, Program]:
    """Op → its program, from every folder with a `launch.py`. Raises SpecError for another version than the contract's."""
    found: dict[str, Program] = {}
    for folder in sorted({registry.folder(op.name) for op in registry.contracts()}):
        module = f"vitrify.kernels.{folder}.launch"
        if importlib.util.find_spec(module) is None:
            continue
        for program in importlib.import_module(module).PROGRAMS:
            version = registry.contract(program.op).version
            if program.version != version:
                raise SpecError(f"op {program.op}: its contract has version {version}, its program for GPUs {program.version}")
            found[program.op] = program
    return dict(sorted(found.items()))


def kernels() -> dict[str, Kernel]:
    """Name → kernel, of all programs. Raises SpecError if two kernels share a name."""
    found: dict[str, Kernel] = {}
    for program in programs().values():
        for launch in program.launches:
            if found.setdefault(launch.kernel.name, launch.kernel) != launch.kernel:
                raise SpecError(f"two kernels are called {launch.kernel.name!r}")
    return dict(sorted(found.items()))


def variants() -> tuple[Variant, ...]:
    """Everything that is compiled for any architecture, by name."""
    found = (Variant(k, dtype, c) for k in kernels().values() for dtype in k.dtypes for c in k.variants)
    return tuple(sorted((v for v in found if any(built(v, name) for name in ARCH_NAMES)), key=lambda variant: variant.name))
