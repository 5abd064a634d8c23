"""What an op is, as data: the one description that the reference, the function body, the kernels and the tests follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.engine.specs import TensorSpec

__all__ = ["DOMAIN", "Attribute", "OpContract"]

DOMAIN = "vitrify"
"""The ONNX domain of every op of ours."""


@dataclass(frozen=True)
class Attribute:
    """A constant of a node: an int, a float, a string or a list of ints; `default` None means that it must be given."""

    name: str
    default: int | float | str | tuple[int, ...] | None
    meaning: str


@dataclass(frozen=True)
class OpContract:
    """One op of the domain `vitrify`.

    version: raised when the meaning changes; artifacts name it, and a library must offer the same one.
    inputs, outputs: all required, dense, in order; equal dimension names mean equal sizes.
    tolerances: dtype of the activations → relative error ‖a − b‖₂ / ‖b‖₂ against a float64 reference
        that every output of every kernel must keep; no element is off by more than 20 × that × rms(b).
    awkward: dimension → sizes that tests try, odd ones on purpose.
    """

    name: str
    version: int
    summary: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerances: Mapping[DType, float]
    awkward: Mapping[str, tuple[int, ...]]
    attributes: tuple[Attribute, ...] = field(default=())

    def __post_init__(self) -> None:
        known = {dim for tensor in self.inputs for dim in tensor.shape if isinstance(dim, str)}
        for tensor in self.outputs:
            unknown = [dim for dim in tensor.shape if isinstance(dim, str) and dim not in known]
            if unknown:
                raise SpecError(
                    f"op {self.name}: output {tensor.name!r} has dims {unknown}, which no input has; inputs have {sorted(known)}"
                )
        if set(self.awkward) != known:
            raise SpecError(f"op {self.name}: awkward names dims {sorted(self.awkward)}, expected {sorted(known)}")

    @property
    def signature(self) -> str:
        """`(x: float32[rows, width]) -> (y: float32[rows, width])`, as the native library describes itself."""

        def side(tensors: tuple[TensorSpec, ...]) -> str:
            return ", ".join(f"{tensor.name}: {tensor}" for tensor in tensors)

        return f"({side(self.inputs)}) -> ({side(self.outputs)})"
