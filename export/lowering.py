"""A component in bfloat16 or int8: its weight files written anew, and its graphs' linear layers, convolutions and attentions
turned into the ops for them.

Files keep their names, tensors theirs; beside an int8 weight `w` lies `w_scale`, float32, one number per row.
Tensors that no linear layer of ours reads are copied as they are.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from vitrify.engine.artifact import ArtifactWriter
from vitrify.engine.dtypes import DType
from vitrify.engine.specs import ComponentSpec, GraphSpec
from vitrify.export.eager import read_float32
from vitrify.export.passes.functions import attach_bodies
from vitrify.export.rounding import SUFFIXES, int8_rows
from vitrify.export.source import TensorLocation, WeightFiles
from vitrify.kernels import registry
from vitrify.kernels.linear.contract import MOST_IN_INT8
from vitrify.kernels.op import DOMAIN

__all__ = [
    "SCALE_SUFFIX",
    "attentions_of",
    "layers_of",
    "lower_graphs",
    "lowered_spec",
    "lowered_weights",
    "rewrite_files",
    "write_lowered",
]

SCALE_SUFFIX = "_scale"
_COPY_BYTES = 2**24
_LAYERS = ("conv", "linear")


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes, /) -> object:
        """Takes all of them."""


def layers_of(models: Mapping[str, ir.Model]) -> dict[str, bool]:
    """The weights that ops of the Linear and Conv2d families alone read → whether int8 can hold them: linear layers' of not more
    than 2¹⁷ input features."""
    read: dict[str, bool] = {}
    others: set[str] = set()
    for model in models.values():
        for node in model.graph:
            at = _weight_at(node)
            for index, value in enumerate(node.inputs):
                if value is None or value.name is None or value.producer() is not None:
                    continue
                if index == at and value.shape is not None:
                    read[value.name] = registry.folder(node.op_type) == "linear" and int(value.shape.numpy()[1]) <= MOST_IN_INT8
                else:
                    others.add(value.name)
    return {name: fits for name, fits in sorted(read.items()) if name not in others}


def attentions_of(models: Mapping[str, ir.Model]) -> list[str]:
    """The modules that own the float32 attentions of ours, as their linear layers' weights name them."""
    return sorted({name for model in models.values() for node in model.graph if (name := _attention_of(node))})


def _attention_of(node: ir.Node) -> str | None:
    """The module that an attention of ours is of: `path`, where the weight `path.layer.weight` makes its queries."""
    if node.domain != DOMAIN or registry.folder(node.op_type) != "attention":
        return None
    query = node.inputs[0].producer() if node.inputs[0] is not None else None
    at = None if query is None else _weight_at(query)
    weight = None if query is None or at is None else query.inputs[at]
    return None if weight is None or weight.name is None else weight.name.rpartition(".")[0].rpartition(".")[0]


def _weight_at(node: ir.Node) -> int | None:
    """Which input of a node of the float32 Linear or Conv2d family is the weight."""
    if node.domain != DOMAIN or registry.folder(node.op_type) not in _LAYERS:
        return None
    names = [tensor.name for tensor in registry.contract(node.op_type).inputs]
    return names.index("weight")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of a new file. data: its bytes, in pieces, made when asked for."""

    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Iterator[bytes]]

    @property
    def dtype(self) -> DType:
        return DType.from_safetensors(self.stored_dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def lowered_weights(files: WeightFiles, layers: Mapping[str, str]) -> dict[Path, tuple[_Tensor, ...]]:
    """What each of the files becomes; a file that stays as it is is left out. layers: stored name → bf16 or int8."""
    made = {}
    for file in files.files:
        tensors = {name: place for name, place in files.tensors.items() if place.file == file}
        changed = [n for n, p in tensors.items() if n in layers and not (layers[n] == "bf16" and p.stored_dtype == "BF16")]
        if changed:
            rows = [one for name, place in tensors.items() for one in _lowered(name, place, layers.get(name))]
            # Wide elements first, so that every tensor begins on a multiple of its elements' size.
            made[file] = tuple(sorted(rows, key=lambda t: (-t.dtype.itemsize, t.name)))
    return made


def _lowered(name: str, place: TensorLocation, precision: str | None) -> Iterator[_Tensor]:
    if precision == "int8":
        yield _Tensor(name, "I8", place.shape, lambda: iter([int8_rows(read_float32(place))[0].tobytes()]))
        yield _Tensor(name + SCALE_SUFFIX, "F32", place.shape[:1], lambda: iter([int8_rows(read_float32(place))[1].tobytes()]))
    elif precision == "bf16" and place.stored_dtype != "BF16":
        bfloat16 = DType.BFLOAT16.numpy
        yield _Tensor(name, "BF16", place.shape, lambda: iter([read_float32(place).astype(bfloat16).tobytes()]))
    else:
        yield _Tensor(name, place.stored_dtype, place.shape, lambda: _stored(place))


def _stored(place: TensorLocation) -> Iterator[bytes]:
    with place.file.open("rb") as handle:
        handle.seek(place.offset)
        left = place.nbytes
        while left:
            piece = handle.read(min(left, _COPY_BYTES))
            if not piece:
                raise OSError(f"{place.file}: ended early")
            left -= len(piece)
            yield piece


def write_lowered(tensors: tuple[_Tensor, ...], sink: Sink) -> dict[str, tuple[int, int]]:
    """A whole safetensors file into `sink`, one tensor in memory at a time; gives name → (offset in the file, bytes)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.stored_dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    start, places = 8 + len(text), {}
    for tensor in tensors:
        for piece in tensor.data():
            sink.write(piece)
        places[tensor.name] = (start, tensor.nbytes)
        start += tensor.nbytes
    return places


def rewrite_files(
    writer: ArtifactWriter, component: str, files: WeightFiles, layers: Mapping[str, str]
) -> dict[str, TensorLocation]:
    """Write the component's files anew in place of the copies in the artifact; gives where every tensor lies then.

    files: the source's. layers: stored name → bf16 or int8.
    """
    folder = writer.folder / component
    places = {name: replace(place, file=folder / place.file.name) for name, place in files.tensors.items()}
    for file, tensors in lowered_weights(files, layers).items():
        path = f"{component}/{file.name}"
        writer.remove(path)
        with writer.open_stream(path) as stream:
            found = write_lowered(tensors, stream)
        for tensor in tensors:
            offset, nbytes = found[tensor.name]
            places[tensor.name] = TensorLocation(folder / file.name, tensor.stored_dtype, tensor.shape, offset, nbytes)
    return places


def lower_graphs(
    models: Mapping[str, ir.Model],
    layers: Mapping[str, str],
    before: Mapping[str, TensorLocation],
    after: Mapping[str, TensorLocation],
) -> None:
    """Turn the nodes over these weights, and these modules' attentions, into the ops of their precision, and point every weight
    to where it lies now.

    layers: parameter, or module of an attention → precision.
    before, after: parameter → where it lay when the graphs were tied, and where it lies; `after` has an int8 weight's scales
    under its name + `_scale`.
    """
    for model in models.values():
        owners = [(node, _attention_of(node)) for node in model.graph]  # Read before the layers that tell them change.
        for node, owner in owners:
            at = _weight_at(node)
            weight = None if at is None else node.inputs[at]
            if owner is not None and (precision := layers.get(owner)):
                _replace(model.graph, node, SUFFIXES[precision], list(node.inputs))
            elif at is not None and weight is not None and (precision := layers.get(str(weight.name))):
                _lower(model.graph, node, at, precision, after)
        for name, value in list(model.graph.initializers.items()):
            if name in before and isinstance(value.const_value, ir.ExternalTensor):
                _point(value, after[name], Path(value.const_value.base_dir))
        attach_bodies(model)


def _lower(graph: ir.Graph, node: ir.Node, at: int, precision: str, after: Mapping[str, TensorLocation]) -> None:
    weight = node.inputs[at]
    assert weight is not None
    inputs = list(node.inputs)
    if precision == "int8":
        name = f"{weight.name}{SCALE_SUFFIX}"
        scale = graph.initializers.get(name)
        if scale is None:
            assert isinstance(weight.const_value, ir.ExternalTensor)
            scale = ir.Value(name=name)
            _point(scale, after[name], Path(weight.const_value.base_dir))
            graph.register_initializer(scale)
        inputs.insert(at + 1, scale)
    _replace(graph, node, SUFFIXES[precision], inputs)


def _replace(graph: ir.Graph, node: ir.Node, suffix: str, inputs: list[ir.Value | None]) -> None:
    """Put the op of that suffix in the node's place."""
    made = ir.Node(DOMAIN, node.op_type + suffix, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
    made.meta.update(node.meta)
    graph.insert_after(node, [made])
    labels = [result.name for result in node.outputs]
    for result, output in zip(node.outputs, made.outputs, strict=True):
        output.type, output.shape = result.type, result.shape
        ir.convenience.replace_all_uses_with(result, output, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for output, label in zip(made.outputs, labels, strict=True):
        output.name = label


def _point(value: ir.Value, place: TensorLocation, folder: Path) -> None:
    value.const_value = ir.ExternalTensor(
        location=place.file.name,
        offset=place.offset,
        length=place.nbytes,
        dtype=ir.DataType(place.dtype.onnx),
        shape=ir.Shape(list(place.shape)),
        name=value.name or "",
        base_dir=folder,
    )
    value.dtype, value.shape = ir.DataType(place.dtype.onnx), ir.Shape(list(place.shape))


def lowered_spec(spec: ComponentSpec, models: Mapping[str, ir.Model]) -> ComponentSpec:
    """The component's spec with the bytes that its graphs read now, and the encoding that most of them are in."""
    stored: dict[DType, int] = {}
    graphs: dict[str, GraphSpec] = {}
    for name, graph in spec.graphs.items():
        tensors = [v.const_value for v in models[name].graph.initializers.values()]
        external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
        for tensor in external:
            dtype = DType.from_onnx(int(tensor.dtype))
            stored[dtype] = stored.get(dtype, 0) + int(tensor.length or 0)
        graphs[name] = replace(graph, parameter_bytes=sum(int(tensor.length or 0) for tensor in external))
    encoding = max(stored, key=lambda dtype: stored[dtype]) if stored else spec.encoding
    return replace(spec, graphs=graphs, encoding=encoding)
