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
    """A constant of a node, `int` or `float`; `default` None means that it must be given."""

    name: str
    kind: type[int] | type[float]
    default: int | float | None
    meaning: str

    def __str__(self) -> str:
        return f"{self.name}: {self.kind.__name__}" + ("" if self.default is None else f" = {self.default:g}")


@dataclass(frozen=True)
class OpContract:
    """One op of the domain `vitrify`.

    version: raised when the meaning changes; artifacts name it, and a library must offer the same one.
    inputs, outputs: all required, dense, in order; equal dimension names mean equal sizes, and a dimension may be a sum of
        named ones, `"in_0 + in_1"`, each of which stands alone elsewhere. On CPU activations are float32.
    tolerances: dtype of the activations → relative error ‖a − b‖₂ / ‖b‖₂ against a float64 reference
        that every output of every kernel must keep; no element is off by more than 20 × that × rms(b).
    awkward: dimension → sizes that tests try, odd ones on purpose.
    dtypes: input → every dtype that it may have, the one in `inputs` first; for weights, which keep the dtype of the checkpoint.
    """

    name: str
    version: int
    summary: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tolerances: Mapping[DType, float]
    awkward: Mapping[str, tuple[int, ...]]
    attributes: tuple[Attribute, ...] = field(default=())
    dtypes: Mapping[str, tuple[DType, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [dim for tensor in self.inputs for dim in tensor.shape if isinstance(dim, str)]
        known = {dim for dim in named if " + " not in dim}
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            for tensor in tensors:
                terms = {term for dim in tensor.shape if isinstance(dim, str) for term in dim.split(" + ")}
                if terms - known:
                    raise SpecError(
                        f"op {self.name}: {side} {tensor.name!r} has dims {sorted(terms - known)}, "
                        f"which no input has; inputs have {sorted(known)}"
                    )
        if set(self.awkward) != known:
            raise SpecError(f"op {self.name}: awkward names dims {sorted(self.awkward)}, expected {sorted(known)}")
        first = {tensor.name: tensor.dtype for tensor in self.inputs}
        for name, dtypes in self.dtypes.items():
            if dtypes[:1] != (first.get(name),):
                raise SpecError(f"op {self.name}: dtypes names {name!r}, which must be an input, with its own dtype first")

    @property
    def signature(self) -> str:
        """`{axis: int} (x: float32[rows, width]) -> (y: float32[rows, width])`, as the native library describes itself.

        The braces hold the attributes, `name: kind = default`, and are left out where there are none.
        An input of several dtypes reads `weight: float32|bfloat16[out, in]`.
        """

        def one(tensor: TensorSpec) -> str:
            dtypes = self.dtypes.get(tensor.name, (tensor.dtype,))
            return f"{tensor.name}: {'|'.join(dtype.value for dtype in dtypes)}[{', '.join(map(str, tensor.shape))}]"

        def side(tensors: tuple[TensorSpec, ...]) -> str:
            return ", ".join(map(one, tensors))

        attributes = f"{{{', '.join(map(str, self.attributes))}}} " if self.attributes else ""
        return f"{attributes}({side(self.inputs)}) -> ({side(self.outputs)})"
