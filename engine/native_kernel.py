"""One op's native kernel called directly, without a graph or a runtime: for tests and measurements."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrify.engine import native_library
from vitrify.engine.dtypes import DType
from vitrify.engine.errors import BackendError

__all__ = ["NativeKernel"]

Array = NDArray[Any]


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int),
        ("dtype", ctypes.c_char_p),
    )


class NativeKernel:
    """A kernel of the op library for one node: made once, run any number of times.

    constants: per input in the contract's order, the array that it always is, or None where it changes from run to run.
        A weight that is constant is packed once, here.
    attributes: as the node has them; the others take their defaults.
    Raises BackendError with the library's own words: an unknown op, a missing attribute, a shape that cannot be.
    """

    def __init__(
        self, op: str, constants: Sequence[Array | None], *, attributes: Mapping[str, int | float] | None = None
    ) -> None:
        self._library = native_library.load()
        self._kept = list(constants)  # Their memory must outlive the kernel.
        attributes = attributes or {}
        names = (ctypes.c_char_p * len(attributes))(*(name.encode() for name in attributes))
        values = (ctypes.c_double * len(attributes))(*attributes.values())
        self._handle = self._library.vitrify_create_kernel(op.encode(), len(attributes), names, values, _tensors(self._kept))
        if self._handle is None:
            raise BackendError(self._library.vitrify_error().decode())

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array], *, threads: int = 1) -> None:
        """Fill `outputs`. All arrays are C-contiguous and shaped as the contract says, else BackendError."""
        if self._library.vitrify_run_kernel(self._handle, _tensors(inputs), _tensors(outputs), threads) != 0:
            raise BackendError(self._library.vitrify_error().decode())

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.vitrify_destroy_kernel(self._handle)


def _tensors(arrays: Sequence[Array | None]) -> ctypes.Array[_Tensor]:
    result = (_Tensor * len(arrays))()
    for tensor, array in zip(result, arrays, strict=True):
        if array is None:
            continue
        if not array.flags.c_contiguous:
            raise BackendError(f"a kernel needs C-contiguous arrays, got strides {array.strides} for shape {array.shape}")
        tensor.data = array.ctypes.data
        tensor.dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor.rank = array.ndim
        tensor.dtype = DType.from_numpy(np.dtype(array.dtype)).value.encode()
    return result
