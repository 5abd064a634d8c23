"""How a node of ours becomes kernel launches on a GPU, as data. `kernels/<op>/launch.py` holds it; nothing here needs Triton.

An op is a `Program`: scratch buffers and launches in their order. A launch names a `Kernel` (one Triton function) and
gives each of its parameters a value: a tensor of the node, a scratch buffer, or a whole number as an expression
(aot/expressions.py) over the op's dimensions and int attributes. A kernel with a dtype and its constants fixed is a
`Variant`, a variant compiled for one architecture an image.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitrify.engine.dtypes import DType

__all__ = [
    "ACTIVATION",
    "HIDDEN_ARGUMENTS",
    "Condition",
    "Constant",
    "Integer",
    "Kernel",
    "Launch",
    "Pointer",
    "Program",
    "Scratch",
    "Variant",
    "as_float32",
]

ACTIVATION = "activation"
"""The dtype of a pointer that follows the node's activations: float16, bfloat16 or float32."""

HIDDEN_ARGUMENTS = ("global_scratch", "profile_scratch")
"""Pointers that Triton appends to every kernel. Ours use neither: a launch passes null."""

Constant = int | float
"""A compile-time constant of a kernel. Floats are those that a float32 attribute holds."""


@dataclass(frozen=True)
class Pointer:
    """A parameter that points to a dense tensor, 16-byte aligned. `dtype` is a DType or ACTIVATION."""

    name: str
    dtype: DType | str
    written: bool = False

    def resolve(self, activation: DType) -> DType:
        """The dtype in a kernel whose activations are of `activation`."""
        return activation if self.dtype == ACTIVATION else DType(self.dtype)


@dataclass(frozen=True)
class Integer:
    """An int32 parameter; it is a multiple of `divisible_by`, which is 1 or 16: the compiler makes wide loads of that.

    least: the smallest value that a launch of one block or more may have.
    """

    name: str
    divisible_by: int = 1
    least: int = 0


@dataclass(frozen=True)
class Kernel:
    """One Triton function.

    function: `package.module:name`. Its parameters that are named nowhere here are compiled as None: one function
        serves several kernels.
    parameters: in the function's order: inputs, whole numbers, outputs. Constants and tile sizes follow by keyword.
    options: constants that are the same in every variant. variants: further constants by name, one mapping per variant.
    tiles: the table of tile sizes in `kernels/configs/`, without `.json`.
    sizes: whole numbers that grid, flops and moved_bytes need and that are no parameters.
    grid: up to three expressions over whole-number parameters, sizes, constants and tile sizes.
    flops, moved_bytes: expressions over the same and `itemsize` (of the activations), for estimates.
    tensor_core: whether it must use matrix instructions in float16 and bfloat16.
    """

    name: str
    function: str
    tiles: str
    parameters: tuple[Pointer | Integer, ...]
    grid: tuple[str, ...]
    flops: str
    moved_bytes: str
    sizes: tuple[str, ...] = ()
    dtypes: tuple[DType, ...] = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
    options: Mapping[str, Constant] = field(default_factory=dict)
    variants: tuple[Mapping[str, Constant], ...] = ({},)
    tensor_core: bool = False


@dataclass(frozen=True)
class Variant:
    """A kernel with its activations' dtype and its constants fixed."""

    kernel: Kernel
    dtype: DType
    constants: Mapping[str, Constant]

    @property
    def name(self) -> str:
        """`residual_diff-bfloat16-BLOCK4096`: unique, and the stem of its images' file names."""
        constants = [f"{key}{value:g}" if isinstance(value, float) else f"{key}{value}" for key, value in self.constants.items()]
        return "-".join([self.kernel.name, self.dtype.value, *constants])


@dataclass(frozen=True)
class Scratch:
    """Memory that a program needs between its launches: `elements` of `dtype`, an expression over dimensions."""

    name: str
    dtype: DType | str
    elements: str


@dataclass(frozen=True)
class Launch:
    """One launch. arguments: parameter or size → tensor or scratch name, or expression. One that is left out has the
    name of its tensor, dimension or attribute. constants: constant → expression over dimensions and attributes, or the
    name of a float attribute; their values pick the variant."""

    kernel: Kernel
    arguments: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Condition:
    """What a call must hold to that equal names of dimensions do not say: `value` is at most (`<=`) or equal to (`=`)
    `other`, expressions over dimensions and int attributes."""

    value: str
    relation: Literal["<=", "="]
    other: str


@dataclass(frozen=True)
class Program:
    """What one op runs. `op` and `version` are its contract's. A call that breaks a condition launches nothing."""

    op: str
    version: int
    launches: tuple[Launch, ...]
    scratch: tuple[Scratch, ...] = ()
    conditions: tuple[Condition, ...] = ()


def as_float32(value: float) -> float:
    """The nearest value that a float32 attribute can hold."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
