"""Cut the denoiser into condition | embed | first | rest | finish, each a graph of its own.

Rules: (1) what `hoist` found goes to condition; (2) of the rest, what embed's border needs goes to embed, what
block 0's outputs need to first, what the last block's hidden state needs to rest, all else to finish;
(3) constants, parameters and sizes are copied to where they are read, a size being read from a tensor at hand;
(4) values with a row per step reach a segment through one table `modulation_<segment>`, [condition_rows, width],
its width padded to 256 bytes; other values cross as they are, under their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from vitrify.engine.denoiser import CONDITION_ROWS, LOOP_SEGMENTS
from vitrify.engine.errors import CompileError
from vitrify.engine.session import ROW_ALIGNMENT_BYTES
from vitrify.export.passes.hoist import BATCH, Invariants
from vitrify.export.recipe import ComponentRecipe

__all__ = ["TABLE_PREFIX", "cut"]

TABLE_PREFIX = "modulation_"
_ALIGNED_FLOATS = ROW_ALIGNMENT_BYTES // 4


def cut(model: ir.Model, recipe: ComponentRecipe, invariants: Invariants, parameters: frozenset[str]) -> dict[str, ir.Model]:
    """The five graphs, in running order. Raises CompileError naming the value that cannot cross."""
    home = _assign(model, recipe, invariants)
    parts = {name: _Part(name, model, parameters, invariants, rows=name == "condition") for name in ("condition", *LOOP_SEGMENTS)}
    names = {i.name for i in recipe.inputs}
    tables: dict[str, list[ir.Value]] = {name: [] for name in LOOP_SEGMENTS}
    crossing: dict[str, list[ir.Value]] = {name: [] for name in parts}
    for node in model.graph:
        segment = home.get(node)
        if segment is None:
            continue
        for value in node.inputs:
            if value is None or not invariants.roles.get(value):
                continue
            producer = value.producer()
            source = home.get(producer) if producer is not None else "input"
            if source == segment:
                continue
            if segment != "condition" and value in invariants.rowed:
                _once(tables[segment], value)
                if producer is None:  # a step's input that the loop reads as it is
                    _once(crossing["condition"], value)
            else:
                _once(crossing[segment], value)
    for name, part in parts.items():
        inputs = [v for v in model.graph.inputs if v.name in names and v in crossing[name]]
        part.take_inputs(inputs + [v for v in crossing[name] if v not in inputs])
        if tables.get(name):
            part.take_table(tables[name])
    for node in model.graph:
        if node in home:
            parts[home[node]].copy(node)
    for name in LOOP_SEGMENTS:
        for value in crossing[name]:
            producer = value.producer()
            if producer is not None:
                parts[home[producer]].give(value)
        if tables[name]:
            parts["condition"].give_table(name, tables[name])
    parts["finish"].give(model.graph.outputs[0])
    return {name: part.finished(model) for name, part in parts.items()}


def _once(values: list[ir.Value], value: ir.Value) -> None:
    if value not in values:
        values.append(value)


def _assign(model: ir.Model, recipe: ComponentRecipe, invariants: Invariants) -> dict[ir.Node, str]:
    segments = recipe.segments
    assert segments is not None
    by_name = {v.name: v for node in model.graph for v in node.outputs}
    ends = {
        "embed": [segments.embed],
        "first": list(segments.first),
        "rest": [segments.rest],
        "finish": [str(model.graph.outputs[0].name)],
    }
    home: dict[ir.Node, str] = dict.fromkeys(invariants.hoisted, "condition")
    for segment, labels in ends.items():
        stack = [by_name[label] for label in labels if label in by_name]
        if not stack:
            raise CompileError(
                f"{recipe.name}: no value is called any of {labels}; the recipe's borders do not fit the traced module"
            )
        while stack:
            node = stack.pop().producer()
            if node is None or node in home or not any(invariants.roles[v] for v in node.outputs):
                continue
            home[node] = segment
            stack += [v for v in node.inputs if v is not None]
    return home


@dataclass
class _Part:
    """One segment under construction: values of the whole graph → values of its own."""

    name: str
    model: ir.Model
    parameters: frozenset[str]
    invariants: Invariants
    rows: bool
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    sizes: dict[str, ir.Value] = field(default_factory=dict)
    copies: dict[tuple[ir.Value, bool], ir.Value] = field(default_factory=dict)

    def take_inputs(self, values: Iterable[ir.Value]) -> None:
        for value in values:
            self.inputs.append(self._same(value))

    def take_table(self, values: Sequence[ir.Value]) -> None:
        """Rule 4, the reading side: Split the table into its values."""
        widths = [_width(v) for v in values]
        padding = -sum(widths) % _ALIGNED_FLOATS
        table = ir.Value(name=TABLE_PREFIX + self.name, type=ir.TensorType(ir.DataType.FLOAT))
        table.shape = ir.Shape([BATCH, sum(widths) + padding])
        self.inputs.append(table)
        sizes = widths + ([padding] if padding else [])
        split = self._constant(f"widths_{self.name}", sizes)
        node = ir.Node("", "Split", [table, split], [ir.AttrInt64("axis", 1)], num_outputs=len(sizes))
        self.nodes.append(node)
        for value, output in zip(values, node.outputs, strict=False):
            output.name = f"{value.name}.row"
            shape = [0 if not isinstance(d, int) else d for d in value.shape or ()]
            if len(shape) == 2:
                self.values[value] = output
                continue
            target = self._constant("shape_" + "_".join(map(str, shape)), shape)
            reshape = ir.Node("", "Reshape", [output, target], num_outputs=1)
            self.nodes.append(reshape)
            self.values[value] = self._named(reshape.outputs[0], value)
        if padding:
            node.outputs[-1].name = f"{TABLE_PREFIX}{self.name}.padding"

    def give_table(self, segment: str, values: Sequence[ir.Value]) -> None:
        """Rule 4, the writing side: flatten, concatenate, pad."""
        flat: list[ir.Value] = []
        for value in values:
            own = self._resolve(value, rowed=True)
            if len(value.shape or ()) != 2:
                node = ir.Node("", "Flatten", [own], [ir.AttrInt64("axis", 1)], num_outputs=1)
                node.outputs[0].name = f"{value.name}.row.{segment}"
                node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                node.outputs[0].shape = ir.Shape([CONDITION_ROWS, _width(value)])
                self.nodes.append(node)
                own = node.outputs[0]
            flat.append(own)
        width = sum(_width(v) for v in values)
        padding = -width % _ALIGNED_FLOATS
        concat = ir.Node("", "Concat", flat, [ir.AttrInt64("axis", 1)], num_outputs=1)
        self.nodes.append(concat)
        result = concat.outputs[0]
        if padding:
            result.name = f"{TABLE_PREFIX}{segment}.unpadded"
            pads = self._constant(f"padding_{segment}", [0, 0, 0, padding])
            pad = ir.Node("", "Pad", [result, pads], num_outputs=1)
            self.nodes.append(pad)
            result = pad.outputs[0]
        result.name = TABLE_PREFIX + segment
        result.type = ir.TensorType(ir.DataType.FLOAT)
        result.shape = ir.Shape([CONDITION_ROWS, width + padding])
        self.outputs.append(result)

    def copy(self, node: ir.Node) -> None:
        rowed = self.rows and any(v in self.invariants.rowed for v in node.outputs)
        inputs = [None if v is None else self._resolve(v, rowed=rowed) for v in node.inputs]
        own = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
        own.meta.update(node.meta)
        for value, output in zip(node.outputs, own.outputs, strict=True):
            self.values[value] = self._named(output, value)
        self.nodes.append(own)

    def give(self, value: ir.Value) -> None:
        own = self.values[value]
        if own not in self.outputs:
            own.name = value.name
            self.outputs.append(own)

    def finished(self, model: ir.Model) -> ir.Model:
        graph = ir.Graph(self.inputs, self.outputs, nodes=self.nodes, name=self.name, opset_imports=dict(model.opset_imports))
        for value in self.constants.values():
            if value.name in self.parameters:
                graph.inputs.append(value)
            else:
                graph.register_initializer(value)
        graph.sort()
        return ir.Model(graph, ir_version=model.ir_version)

    def _resolve(self, value: ir.Value, *, rowed: bool) -> ir.Value:
        """This segment's own value for `value`: made here, taken in, or (rule 3) copied."""
        if value in self.values:
            return self.values[value]
        producer = value.producer()
        if producer is None:
            if value.const_value is None and value.name not in self.parameters:
                raise CompileError(f"{self.name}: {value.name!r} is read but does not reach this segment")
            return self._copied(value)
        if self.invariants.roles.get(value):
            raise CompileError(f"{self.name}: {value.name!r} is read but neither made in this segment nor handed to it")
        # Sizes differ between row and batch form: each form has its copy, made once.
        if (value, rowed) in self.copies:
            return self.copies[value, rowed]
        if producer.op_type == "Shape":
            self.copies[value, rowed] = self._size(value, producer, rowed)
            return self.copies[value, rowed]
        inputs = [None if v is None else self._resolve(v, rowed=rowed) for v in producer.inputs]
        own = ir.Node(
            producer.domain, producer.op_type, inputs, list(producer.attributes.values()), num_outputs=len(producer.outputs)
        )
        self.nodes.append(own)
        for source, output in zip(producer.outputs, own.outputs, strict=True):
            self.copies[source, rowed] = self._named(output, source)
            if rowed:
                output.name = f"{source.name}.rows"
        return self.copies[value, rowed]

    def _size(self, value: ir.Value, producer: ir.Node, rowed: bool) -> ir.Value:
        source = producer.inputs[0]
        assert source is not None
        assert source.shape is not None
        start = producer.attributes["start"].as_int() if "start" in producer.attributes else 0
        end = producer.attributes["end"].as_int() if "end" in producer.attributes else len(source.shape)
        dims = list(source.shape)[start:end]
        parts = [self._one_size(d, rowed) for d in dims]
        if len(parts) == 1:
            return parts[0]
        node = ir.Node("", "Concat", parts, [ir.AttrInt64("axis", 0)], num_outputs=1)
        node.outputs[0].name = f"{value.name}.{'rows' if rowed else 'here'}"
        self.nodes.append(node)
        return node.outputs[0]

    def _one_size(self, dim: int | ir.SymbolicDim, rowed: bool) -> ir.Value:
        if isinstance(dim, int):
            return self._constant(f"size_{dim}", [dim])
        symbol = CONDITION_ROWS if rowed and dim.value == BATCH else str(dim)
        if symbol in self.sizes:
            return self.sizes[symbol]
        for own in self.inputs:
            for axis, found in enumerate(own.shape or ()):
                if not isinstance(found, int) and str(found) == symbol:
                    attributes = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
                    node = ir.Node("", "Shape", [own], attributes, num_outputs=1)
                    node.outputs[0].name = f"size_of_{symbol}"
                    self.nodes.append(node)
                    self.sizes[symbol] = node.outputs[0]
                    return node.outputs[0]
        raise CompileError(f"{self.name}: no input has the dimension {symbol!r}, whose size is read there")

    def _same(self, value: ir.Value) -> ir.Value:
        own = ir.Value(name=value.name, type=value.type)
        self.values[value] = self._named(own, value)
        return own

    def _copied(self, value: ir.Value) -> ir.Value:
        assert value.name is not None
        if value.name not in self.constants:
            own = ir.Value(name=value.name, type=value.type, const_value=value.const_value)
            own.shape = value.shape
            self.constants[value.name] = own
        self.values[value] = self.constants[value.name]
        return self.constants[value.name]

    def _constant(self, name: str, numbers: list[int]) -> ir.Value:
        if name not in self.constants:
            value = ir.Value(name=name, const_value=ir.tensor(np.asarray(numbers, dtype=np.int64), name=name))
            value.dtype, value.shape = ir.DataType.INT64, ir.Shape([len(numbers)])
            self.constants[name] = value
        return self.constants[name]

    def _named(self, own: ir.Value, source: ir.Value) -> ir.Value:
        own.name, own.type = source.name, source.type
        if source.shape is not None:
            rename = self.rows and source in self.invariants.rowed
            own.shape = ir.Shape(
                [
                    CONDITION_ROWS
                    if rename and not isinstance(d, int) and d.value == BATCH
                    else (d if isinstance(d, int) else d.value)
                    for d in source.shape
                ]
            )
        return own


def _width(value: ir.Value) -> int:
    """Numbers per row. Raises CompileError for a value that has no fixed number of them."""
    dims = list(value.shape or ())
    fixed = [d for d in dims[1:] if isinstance(d, int)]
    if not dims or isinstance(dims[0], int) or len(fixed) != len(dims) - 1 or value.dtype != ir.DataType.FLOAT:
        raise CompileError(
            f"{value.name!r} ({value.dtype}{dims}) cannot stand in a modulation table, expected float32 [batch, numbers]"
        )
    return math.prod(fixed)
