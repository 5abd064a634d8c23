"""One enum of element types, and one row per type with its name in every neighbouring format."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from vitrify.engine.errors import SpecError

__all__ = ["DType"]


@dataclass(frozen=True)
class _Row:
    numpy: np.dtype[np.generic]
    safetensors: str
    onnx: int
    ort: str


class DType(enum.Enum):
    """An element type; its value is the name that manifests, plans and errors use."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"
    INT64 = "int64"
    INT32 = "int32"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy dtype (bfloat16 through ml_dtypes)."""
        return _TABLE[self].numpy

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _TABLE[self].numpy.itemsize

    @property
    def safetensors(self) -> str:
        """The name in a safetensors header, e.g. `BF16`."""
        return _TABLE[self].safetensors

    @property
    def onnx(self) -> int:
        """The number of onnx.TensorProto.DataType."""
        return _TABLE[self].onnx

    @property
    def ort(self) -> str:
        """The type string of an ONNX Runtime session's inputs and outputs, e.g. `tensor(float)`."""
        return _TABLE[self].ort

    @classmethod
    def from_name(cls, name: str) -> DType:
        """`"float32"` → FLOAT32. Raises SpecError with the names known."""
        try:
            return cls(name)
        except ValueError:
            raise SpecError(f"dtype {name!r} is unknown; known: {', '.join(d.value for d in cls)}") from None

    @classmethod
    def from_numpy(cls, dtype: np.dtype[np.generic] | type[np.generic]) -> DType:
        """The member whose numpy dtype equals `dtype`. Raises SpecError."""
        wanted = np.dtype(dtype)
        for member, row in _TABLE.items():
            if row.numpy == wanted:
                return member
        raise SpecError(f"numpy dtype {wanted} has no counterpart; known: {', '.join(d.value for d in cls)}")

    @classmethod
    def from_safetensors(cls, name: str) -> DType:
        """`"BF16"` → BFLOAT16. Raises SpecError."""
        for member, row in _TABLE.items():
            if row.safetensors == name:
                return member
        raise SpecError(f"safetensors dtype {name!r} is unsupported; known: {', '.join(r.safetensors for r in _TABLE.values())}")

    @classmethod
    def from_onnx(cls, code: int) -> DType:
        """The member of an onnx.TensorProto.DataType number. Raises SpecError."""
        for member, row in _TABLE.items():
            if row.onnx == code:
                return member
        raise SpecError(f"ONNX data type {code} is unsupported")


_TABLE: dict[DType, _Row] = {
    DType.FLOAT32: _Row(np.dtype(np.float32), "F32", 1, "tensor(float)"),
    DType.FLOAT16: _Row(np.dtype(np.float16), "F16", 10, "tensor(float16)"),
    DType.BFLOAT16: _Row(np.dtype(ml_dtypes.bfloat16), "BF16", 16, "tensor(bfloat16)"),
    DType.FLOAT64: _Row(np.dtype(np.float64), "F64", 11, "tensor(double)"),
    DType.INT64: _Row(np.dtype(np.int64), "I64", 7, "tensor(int64)"),
    DType.INT32: _Row(np.dtype(np.int32), "I32", 6, "tensor(int32)"),
    DType.INT8: _Row(np.dtype(np.int8), "I8", 3, "tensor(int8)"),
    DType.UINT8: _Row(np.dtype(np.uint8), "U8", 2, "tensor(uint8)"),
    DType.BOOL: _Row(np.dtype(np.bool_), "BOOL", 9, "tensor(bool)"),
}
