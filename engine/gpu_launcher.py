"""An op's GPU kernels called directly, without a graph or a runtime: for tests and measurements on a machine with a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path

from vitrify.engine import native_library
from vitrify.engine.errors import BackendError

__all__ = ["GpuLauncher"]


class _Call(ctypes.Structure):
    """VitrifyGpuCall of kernels/native/c_interface.h."""

    _fields_ = (
        ("op", ctypes.c_char_p),
        ("version", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        ("number_count", ctypes.c_int),
        ("number_names", ctypes.POINTER(ctypes.c_char_p)),
        ("numbers", ctypes.POINTER(ctypes.c_int64)),
        ("real_count", ctypes.c_int),
        ("real_names", ctypes.POINTER(ctypes.c_char_p)),
        ("reals", ctypes.POINTER(ctypes.c_double)),
        ("tensor_count", ctypes.c_int),
        ("tensor_names", ctypes.POINTER(ctypes.c_char_p)),
        ("tensors", ctypes.POINTER(ctypes.c_void_p)),
    )


class GpuLauncher:
    """The kernels of a folder that `vitrify kernels build` wrote, launched in the calling thread's current CUDA context.

    Raises BackendError with the library's own words: no driver, a damaged build.
    """

    def __init__(self, folder: Path) -> None:
        self._library = native_library.load()
        self._library.vitrify_gpu_open.restype = ctypes.c_void_p
        self._library.vitrify_gpu_open.argtypes = [ctypes.c_char_p]
        self._library.vitrify_gpu_run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Call), ctypes.c_void_p]
        self._library.vitrify_gpu_close.argtypes = [ctypes.c_void_p]
        self._library.vitrify_gpu_close.restype = None
        self._handle = self._library.vitrify_gpu_open(str(folder).encode())
        if self._handle is None:
            raise BackendError(self._library.vitrify_error().decode())

    def prepare(
        self, op: str, version: int, activation: str, values: Mapping[str, int | float], tensors: Mapping[str, int]
    ) -> Callable[[int], None]:
        """A call of one op, ready to be made any number of times on a stream given by its handle.

        activation: float32, float16 or bfloat16. values: dimensions and attributes. tensors: inputs, outputs and scratch by
        name, addresses in GPU memory, which the caller keeps. The call returns before the GPU is done.
        Raises BackendError where no kernel takes the call: then nothing was launched.
        """
        numbers = {name: value for name, value in values.items() if isinstance(value, int)}
        reals = {name: value for name, value in values.items() if isinstance(value, float)}
        call = _Call(op.encode(), version, activation.encode())
        call.number_count, call.number_names = len(numbers), _names(numbers)
        call.numbers = (ctypes.c_int64 * len(numbers))(*numbers.values())
        call.real_count, call.real_names = len(reals), _names(reals)
        call.reals = (ctypes.c_double * len(reals))(*reals.values())
        call.tensor_count, call.tensor_names = len(tensors), _names(tensors)
        call.tensors = (ctypes.c_void_p * len(tensors))(*tensors.values())

        def run(stream: int) -> None:
            if self._library.vitrify_gpu_run(self._handle, ctypes.byref(call), stream) != 0:
                raise BackendError(self._library.vitrify_error().decode())

        return run

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.vitrify_gpu_close(self._handle)


def _names(named: Mapping[str, object]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(named))(*(name.encode() for name in named))
