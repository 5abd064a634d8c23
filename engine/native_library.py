"""The built op library of this installation: where it is, which ops it holds, which instruction set it runs on.

The library comes with the package, never with an artifact, and needs no ONNX Runtime to be looked at.
"""

from __future__ import annotations

import ctypes
import importlib.resources
from functools import lru_cache
from pathlib import Path

from vitrify.engine.errors import BackendError

__all__ = [
    "cpu_level",
    "cpu_levels",
    "force_cpu_level",
    "gpu_status",
    "load",
    "ops",
    "path",
    "signatures",
]

_FILE = "libvitrify_ops.so"

# Of kernels/native/c_interface.h: what the functions called here and in native_kernel take and give.
_ABI_VERSION = 1


def path() -> Path | None:
    """The library's file, or None in an installation that was built without a C++ compiler."""
    file = importlib.resources.files("vitrify.engine").joinpath("native", _FILE)
    return file if isinstance(file, Path) and file.is_file() else None


def load() -> ctypes.CDLL:
    """The library, loaded. ONNX Runtime loads the same file: both see one state, the forced level included.

    Raises BackendError where there is no library, where it does not load on this machine, or where it is of another version.
    """
    file = path()
    if file is None:
        raise BackendError(
            "this installation has no native op library; reinstall vitrify with a C++ compiler, or use kernels='portable'"
        )
    return _load(file)


@lru_cache(maxsize=1)
def _load(file: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise BackendError(
            f"{file} does not load: {error}; reinstall vitrify on this machine, or use kernels='portable'"
        ) from error
    version = library.vitrify_abi_version() if hasattr(library, "vitrify_abi_version") else "none"
    if version != _ABI_VERSION:
        raise BackendError(
            f"{file} has interface version {version}, expected {_ABI_VERSION}: it was built from other sources; "
            "reinstall vitrify, or in a clone run `make native`"
        )
    for name in (
        "vitrify_ops",
        "vitrify_op_signatures",
        "vitrify_cpu_level",
        "vitrify_cpu_level_name",
        "vitrify_error",
        "vitrify_gpu_status",
    ):
        getattr(library, name).restype = ctypes.c_char_p
    library.vitrify_cpu_level_name.argtypes = [ctypes.c_int]
    library.vitrify_cpu_level_supported.argtypes = [ctypes.c_int]
    library.vitrify_force_cpu_level.argtypes = [ctypes.c_char_p]
    library.vitrify_create_kernel.restype = ctypes.c_void_p
    library.vitrify_run_kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    library.vitrify_destroy_kernel.argtypes = [ctypes.c_void_p]
    library.vitrify_destroy_kernel.restype = None
    return library


def ops() -> dict[str, int]:
    """Op name → version, as the library itself says. Raises BackendError as `load` does."""
    text: bytes = load().vitrify_ops()
    rows = (line.split(" ") for line in text.decode().splitlines())
    return {name: int(version) for name, version in rows}


def signatures() -> dict[str, str]:
    """Op name → its inputs and outputs as the library was compiled with, e.g. `(x: float32[rows, width]) -> (…)`."""
    text: bytes = load().vitrify_op_signatures()
    rows = (line.split(" ", 2) for line in text.decode().splitlines())
    return {name: signature for name, _version, signature in rows}


def cpu_level() -> str:
    """The instruction set whose kernels run: `scalar`, `avx2`, `avx512`, `avx512_vnni`, `avx512_bf16`, `amx`."""
    name: bytes = load().vitrify_cpu_level()
    return name.decode()


def gpu_status() -> str:
    """Why ONNX Runtime for CUDA would not run our kernels: no driver, no build, a damaged one. Empty where it would."""
    reason: bytes = load().vitrify_gpu_status()
    return reason.decode()


def cpu_levels() -> tuple[str, ...]:
    """The levels that were compiled in and that this machine has, worst to best."""
    library = load()
    levels: list[str] = []
    index = 0
    while (name := library.vitrify_cpu_level_name(index)) is not None:
        if library.vitrify_cpu_level_supported(index):
            levels.append(name.decode())
        index += 1
    return tuple(levels)


def force_cpu_level(name: str | None) -> None:
    """Run the kernels of one level from now on, in the whole process; None goes back to the best. For tests and bench.

    Raises BackendError naming the levels that this machine has.
    """
    if load().vitrify_force_cpu_level(None if name is None else name.encode()) != 0:
        raise BackendError(f"CPU level {name!r} is not available here; available: {', '.join(cpu_levels())}")
