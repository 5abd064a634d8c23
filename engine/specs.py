"""What both halves agree on: dimensions, tensors, graphs, components, targets; as frozen data.

Every class turns itself into plain JSON data (`to_json`) and back (`from_json`, which trusts nothing
and raises SpecError), so that the manifest is a sum of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError

__all__ = [
    "LOOP_SEGMENTS",
    "MODEL",
    "PRECISIONS",
    "SEGMENTS",
    "ComponentSpec",
    "Dim",
    "GraphSpec",
    "LayerPrecision",
    "ParitySpec",
    "PrecisionSpec",
    "TensorSpec",
    "check_target",
    "expect",
    "expect_list",
    "expect_map",
]

Json = Any

MODEL = "model"
LOOP_SEGMENTS = ("embed", "first", "rest", "finish")
SEGMENTS = ("condition", *LOOP_SEGMENTS)
"""A denoiser's graphs in running order; any other component has one graph, MODEL."""

PRECISIONS = ("fp32", "bf16", "int8")
"""fp32: weights as the source stores them, products in float32. bf16, int8: what the ops ending in Bf16 and Int8 do."""


def expect(data: Json, kind: type[Any], where: str) -> Any:
    """`data` if it is a `kind` (a bool is no int), else a SpecError that says where."""
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise SpecError(f"{where}: got {type(data).__name__} {str(data)[:60]!r}, expected {kind.__name__}")
    return data


def expect_map(data: Json, where: str, keys: Sequence[str] | None = None) -> dict[str, Json]:
    """`data` if it is an object with string keys (exactly `keys`, when given), else a SpecError."""
    expect(data, dict, where)
    if keys is not None and set(data) != set(keys):
        missing, extra = sorted(set(keys) - set(data)), sorted(set(data) - set(keys))
        raise SpecError(f"{where}: missing fields {missing}, unknown fields {extra}")
    return dict(data)


def expect_list(data: Json, where: str) -> list[Json]:
    """`data` if it is a list, else a SpecError."""
    return list(expect(data, list, where))


@dataclass(frozen=True)
class Dim:
    """A named dimension and the range an artifact was compiled for: min ≤ value ≤ max, in steps of `step` from min."""

    name: str
    min: int
    opt: int
    max: int
    step: int = 1

    def __post_init__(self) -> None:
        if not (1 <= self.min <= self.opt <= self.max) or self.step < 1:
            raise SpecError(
                f"dim {self.name!r}: got min={self.min} opt={self.opt} max={self.max} step={self.step}, "
                "expected 1 <= min <= opt <= max and step >= 1"
            )
        if (self.opt - self.min) % self.step or (self.max - self.min) % self.step:
            raise SpecError(
                f"dim {self.name!r}: opt={self.opt} and max={self.max} must lie whole steps of {self.step} above {self.min}"
            )

    def allows(self, value: int) -> bool:
        """Whether `value` lies in the range and on its raster."""
        return self.min <= value <= self.max and (value - self.min) % self.step == 0

    def nearest(self, value: int) -> tuple[int, ...]:
        """The allowed values next to `value`: one at the ends of the range, else the two around it."""
        if value <= self.min:
            return (self.min,)
        if value >= self.max:
            return (self.max,)
        low = self.min + (value - self.min) // self.step * self.step
        return (low,) if low == value else (low, low + self.step)

    def longest(self, value: int) -> int | None:
        """The largest allowed value up to `value`; None where all are larger."""
        if value < self.min:
            return None
        capped = min(value, self.max)
        return capped - (capped - self.min) % self.step

    def __str__(self) -> str:
        if self.min == self.max:
            return str(self.min)
        return f"{self.min}..{self.max}" + (f" in steps of {self.step}" if self.step > 1 else "")

    def to_json(self) -> Json:
        return {"name": self.name, "min": self.min, "opt": self.opt, "max": self.max, "step": self.step}

    @classmethod
    def from_json(cls, data: Json, where: str = "dim") -> Dim:
        fields = expect_map(data, where, ("name", "min", "opt", "max", "step"))
        numbers = {k: expect(fields[k], int, f"{where}.{k}") for k in ("min", "opt", "max", "step")}
        return cls(name=expect(fields["name"], str, f"{where}.name"), **numbers)


_PLUS = " + "


def _sum(names: str, dims: Mapping[str, int]) -> int:
    return sum(dims[name] for name in names.split(_PLUS))


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output.

    shape: a number is fixed, a string names a dimension or a sum of dimensions, `"text_tokens + image_tokens"`.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    def resolve(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers. Raises SpecError naming a dimension that `dims` lacks."""
        try:
            return tuple(d if isinstance(d, int) else dims[d] if d in dims else _sum(d, dims) for d in self.shape)
        except KeyError:
            names = (name for d in self.shape if isinstance(d, str) for name in d.split(_PLUS))
            missing = [name for name in names if name not in dims]
            raise SpecError(f"tensor {self.name!r} {self}: no value for dims {missing}; given: {dict(dims)}") from None

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(str(d) for d in self.shape)}]"

    def to_json(self) -> Json:
        return {"name": self.name, "dtype": self.dtype.value, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Json, where: str = "tensor") -> TensorSpec:
        fields = expect_map(data, where, ("name", "dtype", "shape"))
        shape = expect_list(fields["shape"], f"{where}.shape")
        for extent in shape:
            if isinstance(extent, bool) or not isinstance(extent, int | str) or (isinstance(extent, int) and extent < 0):
                raise SpecError(f"{where}.shape: got {extent!r}, expected a size >= 0 or a dimension's name")
        return cls(
            name=expect(fields["name"], str, f"{where}.name"),
            dtype=DType.from_name(expect(fields["dtype"], str, f"{where}.dtype")),
            shape=tuple(shape),
        )


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of a component: a whole component's `model`, or one segment of a denoiser.

    path: POSIX path within the artifact. inputs, outputs: in the graph's order.
    parameters: elements of the source's parameters that this graph reads.
    parameter_bytes: the same in bytes as stored.
    """

    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int = 0
    parameter_bytes: int = 0

    def to_json(self) -> Json:
        return {
            "path": self.path,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "parameters": self.parameters,
            "parameter_bytes": self.parameter_bytes,
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "graph") -> GraphSpec:
        fields = expect_map(data, where, ("path", "inputs", "outputs", "parameters", "parameter_bytes"))

        def tensors(key: str) -> tuple[TensorSpec, ...]:
            rows = expect_list(fields[key], f"{where}.{key}")
            return tuple(TensorSpec.from_json(row, f"{where}.{key}[{i}]") for i, row in enumerate(rows))

        return cls(
            path=expect(fields["path"], str, f"{where}.path"),
            inputs=tensors("inputs"),
            outputs=tensors("outputs"),
            parameters=expect(fields["parameters"], int, f"{where}.parameters"),
            parameter_bytes=expect(fields["parameter_bytes"], int, f"{where}.parameter_bytes"),
        )


@dataclass(frozen=True)
class ParitySpec:
    """How a component compared with eager PyTorch in float32 when it was compiled.

    checked: False after `--no-parity`; then there are no measurements.
    method: "whole" (the component at once) or "blocks" (block by block, and the wiring at small width).
    measurements: what was compared → relative error ‖a − b‖₂ / ‖b‖₂, rounded up to 1, 2 or 5 × 10ⁿ.
    tolerances: the same keys → the bound each measurement was held against.
    """

    checked: bool
    method: str = "whole"
    measurements: Mapping[str, float] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {
            "checked": self.checked,
            "method": self.method,
            "measurements": dict(self.measurements),
            "tolerances": dict(self.tolerances),
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "parity") -> ParitySpec:
        fields = expect_map(data, where, ("checked", "method", "measurements", "tolerances"))

        def numbers(key: str) -> dict[str, float]:
            rows = expect_map(fields[key], f"{where}.{key}")
            return {k: float(expect(v, float, f"{where}.{key}.{k}")) for k, v in rows.items()}

        return cls(
            checked=expect(fields["checked"], bool, f"{where}.checked"),
            method=expect(fields["method"], str, f"{where}.method"),
            measurements=numbers("measurements"),
            tolerances=numbers("tolerances"),
        )


@dataclass(frozen=True)
class LayerPrecision:
    """One linear layer or attention. error: its output's relative error in the precision asked for, 0 where none was measured."""

    precision: str
    error: float = 0.0

    def to_json(self) -> Json:
        return {"precision": self.precision, "error": self.error}

    @classmethod
    def from_json(cls, data: Json, where: str) -> LayerPrecision:
        fields = expect_map(data, where, ("precision", "error"))
        return cls(_precision(fields["precision"], f"{where}.precision"), float(expect(fields["error"], float, f"{where}.error")))


@dataclass(frozen=True)
class PrecisionSpec:
    """A component that was exported in another precision than fp32.

    name: the precision asked for. layers: weight, or module of an attention → what it computes in: where the bound asks for it,
        the worst ones stay one above, in bf16 for int8, in fp32 for bf16. An attention is in bf16 or fp32.
    error: that 95 of 100 of the component's outputs keep against eager PyTorch in float32, ‖a − b‖₂ / ‖b‖₂ of each, rounded up
        to two digits;
    bound: the error allowed. measured_on: what the inputs were, "calibration prompts" or "random inputs".
    """

    name: str
    bound: float
    error: float
    measured_on: str
    layers: Mapping[str, LayerPrecision]

    def to_json(self) -> Json:
        return {
            "name": self.name,
            "bound": self.bound,
            "error": self.error,
            "measured_on": self.measured_on,
            "layers": {name: layer.to_json() for name, layer in self.layers.items()},
        }

    @classmethod
    def from_json(cls, data: Json, where: str = "precision") -> PrecisionSpec:
        fields = expect_map(data, where, ("name", "bound", "error", "measured_on", "layers"))
        layers = expect_map(fields["layers"], f"{where}.layers")
        return cls(
            name=_precision(fields["name"], f"{where}.name"),
            bound=float(expect(fields["bound"], float, f"{where}.bound")),
            error=float(expect(fields["error"], float, f"{where}.error")),
            measured_on=expect(fields["measured_on"], str, f"{where}.measured_on"),
            layers={key: LayerPrecision.from_json(layers[key], f"{where}.layers.{key}") for key in sorted(layers)},
        )


def _precision(data: Json, where: str) -> str:
    name: str = expect(data, str, where)
    if name not in PRECISIONS:
        raise SpecError(f"{where}: got {name!r}, expected one of {', '.join(PRECISIONS)}")
    return name


@dataclass(frozen=True)
class ComponentSpec:
    """A part of a pipeline (a text encoder, the transformer, the VAE decoder) as compiled.

    class_name: the source's class. encoding: the dtype most of its weights are stored in.
    config: the source's config.json. graphs: {"model": …}, or the denoiser's segments in running order
    (condition, embed, first, rest, finish). weights: safetensors files, paths within the artifact.
    invariant_work: matrix products, activations and norms that the loop repeats though no latent reaches them, `segment/value`.
    precision: None where linear layers multiply in float32; in JSON the field is then left out.
    """

    name: str
    class_name: str
    encoding: DType
    config: Mapping[str, Json]
    graphs: Mapping[str, GraphSpec]
    weights: tuple[str, ...]
    parity: ParitySpec
    invariant_work: tuple[str, ...] = ()
    precision: PrecisionSpec | None = None

    def to_json(self) -> Json:
        data = {
            "name": self.name,
            "class_name": self.class_name,
            "encoding": self.encoding.value,
            "config": dict(self.config),
            "graphs": {k: g.to_json() for k, g in self.graphs.items()},
            "graph_order": list(self.graphs),
            "weights": list(self.weights),
            "parity": self.parity.to_json(),
            "invariant_work": list(self.invariant_work),
        }
        return data if self.precision is None else {**data, "precision": self.precision.to_json()}

    @classmethod
    def from_json(cls, data: Json, where: str = "component") -> ComponentSpec:
        keys = ("name", "class_name", "encoding", "config", "graphs", "graph_order", "weights", "parity", "invariant_work")
        rounded = isinstance(data, dict) and "precision" in data
        fields = expect_map(data, where, (*keys, "precision") if rounded else keys)
        graphs = expect_map(fields["graphs"], f"{where}.graphs")
        order = [expect(name, str, f"{where}.graph_order") for name in expect_list(fields["graph_order"], f"{where}.graph_order")]
        if sorted(order) != sorted(graphs):
            raise SpecError(f"{where}.graph_order: got {order}, expected the keys of graphs {sorted(graphs)}")
        return cls(
            name=expect(fields["name"], str, f"{where}.name"),
            class_name=expect(fields["class_name"], str, f"{where}.class_name"),
            encoding=DType.from_name(expect(fields["encoding"], str, f"{where}.encoding")),
            config=expect_map(fields["config"], f"{where}.config"),
            graphs={k: GraphSpec.from_json(graphs[k], f"{where}.graphs.{k}") for k in order},
            weights=tuple(expect(w, str, f"{where}.weights") for w in expect_list(fields["weights"], f"{where}.weights")),
            parity=ParitySpec.from_json(fields["parity"], f"{where}.parity"),
            invariant_work=tuple(
                expect(w, str, f"{where}.invariant_work")
                for w in expect_list(fields["invariant_work"], f"{where}.invariant_work")
            ),
            precision=PrecisionSpec.from_json(fields["precision"], f"{where}.precision") if rounded else None,
        )


def check_target(text: str) -> str:
    """`text` if it names what graphs are typed for: `cpu`, `cuda`, `tensorrt-rtx:sm89`, …; else SpecError with the kinds."""
    kind = text.partition(":")[0]
    if kind not in ("cpu", "cuda", "tensorrt-rtx"):
        raise SpecError(f"target {text!r}: kind {kind!r} is unknown; known: cpu, cuda, tensorrt-rtx")
    return text
