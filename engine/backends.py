"""Backends by name."""

from __future__ import annotations

from collections.abc import Mapping

from vitrify.engine.errors import BackendError
from vitrify.engine.ort import KernelMode, OrtCpuBackend
from vitrify.engine.session import Backend

__all__ = ["backend"]


def backend(
    name: str = "cpu", *, kernels: KernelMode = "auto", threads: int | None = None, ops: Mapping[str, int] | None = None
) -> Backend:
    """The backend called `name`. ops: what the graphs that it will open use, op → version.

    Raises BackendError listing the backends there are, or saying what must be installed.
    """
    if name == "cpu":
        return OrtCpuBackend(kernels=kernels, threads=threads, ops=ops)
    raise BackendError(f"backend {name!r} is unknown; known: cpu")
