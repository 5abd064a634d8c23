"""Pieces of the shipped graphs between borders, as models of their own, so that each can be held against the eager module.

A piece is cut out of what was written: it follows a value from segment to segment by its name, and through a
modulation table by its place in it. Two borders that the graph holds as one tensor are joined where a piece begins
and parted where it ends, by nodes that the piece alone has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from vitrify.engine.denoiser import CONDITION_ROWS
from vitrify.engine.errors import ParityError
from vitrify.engine.specs import GraphSpec
from vitrify.export.graphs import tensor_spec
from vitrify.export.passes.borders import JOINT
from vitrify.export.passes.functions import ops_of
from vitrify.export.passes.hoist import BATCH
from vitrify.export.passes.segments import TABLE_PREFIX
from vitrify.export.recipe import ComponentRecipe
from vitrify.kernels.op import DOMAIN

__all__ = ["Piece", "ShippedGraphs"]


@dataclass(frozen=True)
class Piece:
    """A part of a component between borders. name: the border it ends at. model: serialised ONNX."""

    name: str
    model: bytes
    spec: GraphSpec


class ShippedGraphs:
    """A component's graphs as written, read as one."""

    def __init__(self, recipe: ComponentRecipe, graphs: Mapping[str, Path]) -> None:
        self.recipe = recipe
        self._models = {name: ir.load(path) for name, path in graphs.items()}
        self._home: dict[ir.Value, str] = {}
        self._made: dict[str, ir.Value] = {}
        for segment, model in self._models.items():
            for value in model.graph.inputs:
                self._home[value] = segment
            for node in model.graph:
                for value in node.outputs:
                    self._home[value] = segment
                    if value.name:
                        self._made.setdefault(value.name, value)
        self._labels = frozenset(label for border in recipe.borders for label in border.labels if label is not None)
        self._joint = {label: (value, at) for value in self._made.values() for at, label in enumerate(self.labels_of(value))}

    def pieces(self) -> list[Piece]:
        """Every part between borders, then what leads to the outputs: together they are the whole component."""
        groups = [(border.path, [label for label in border.labels if label is not None]) for border in self.recipe.borders]
        groups.append(("output", list(self.recipe.outputs)))
        pieces = []
        for name, wanted in groups:
            targets = [label for label in wanted if label in self._made or label in self._joint]
            if targets:
                pieces.append(self._piece(name, targets, self._labels - set(wanted)))
        return pieces

    def _piece(self, name: str, targets: Sequence[str], stops: frozenset[str]) -> Piece:
        copy = _Copy(self, stops)
        outputs = [copy.value(self._made[label]) if label in self._made else copy.part(*self._joint[label]) for label in targets]
        for label, output in zip(targets, outputs, strict=True):
            output.name = label
        first = next(iter(self._models.values()))
        graph = ir.Graph(copy.inputs, outputs, nodes=copy.nodes, name=name, opset_imports={"": first.graph.opset_imports[""]})
        for value in copy.constants.values():
            graph.register_initializer(value)
        used = ops_of(ir.Model(graph, ir_version=first.ir_version))
        bodies = {key: body for shipped in self._models.values() for key, body in shipped.functions.items() if body.name in used}
        if bodies:
            graph.opset_imports[DOMAIN] = 1
        model = ir.Model(graph, ir_version=first.ir_version, functions=[bodies[key] for key in sorted(bodies)])
        spec = GraphSpec(
            f"{self.recipe.name} piece {name}", tuple(map(tensor_spec, copy.inputs)), tuple(map(tensor_spec, outputs))
        )
        return Piece(name, ir.to_proto(model).SerializeToString(deterministic=True), spec)

    def source(self, value: ir.Value) -> ir.Value:
        """Follow a segment's input to the value of the segment that made it; a component's input is its own source."""
        if value.producer() is None and value.const_value is None and value.name in self._made:
            return self._made[value.name]
        return value

    def labels_of(self, value: ir.Value) -> tuple[str, ...]:
        """The borders that `value` holds one after the other along the tokens; empty for any other value."""
        labels = tuple(str(value.name).split(JOINT))
        return labels if len(labels) > 1 and self._labels.issuperset(labels) else ()

    def table_entry(self, node: ir.Node, output: int) -> ir.Value | None:
        """What condition wrote to the place that `node` (the Split of a table) reads as its `output`-th value.

        Raises ParityError where the table is read in other widths than it is written in.
        """
        table = node.inputs[0] if node.op_type == "Split" else None
        if table is None or not _is_table(table):
            return None
        written = self._written(table)
        widths = [_row_width(v) for v in written]
        sizes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        read = [] if sizes is None else sizes.numpy().tolist()
        if output >= len(written) or read[: len(written)] != widths:
            raise ParityError(f"{table.name!r}: entry {output} is read from widths {read}, but condition writes widths {widths}")
        return written[output]

    def entry_at(self, table: ir.Value, at: int, width: int | None) -> ir.Value:
        """What condition wrote to the columns `at` … `at + width` of `table`. Raises ParityError where that is no one entry."""
        start = 0
        written = self._written(table)
        for value in written:
            found = _row_width(value)
            if start == at and found == width:
                return value
            start += found or 0
        widths = [_row_width(v) for v in written]
        raise ParityError(f"{table.name!r}: columns {at} … {at} + {width} are read, but condition writes widths {widths}")

    def _written(self, table: ir.Value) -> list[ir.Value]:
        """The values that condition laid side by side into a table."""
        made = self._made[str(table.name)].producer()
        if made is not None and made.op_type == "Pad":
            made = made.inputs[0].producer() if made.inputs[0] is not None else None
        return [v for v in made.inputs if v is not None] if made is not None and made.op_type == "Concat" else []


def _is_table(value: ir.Value) -> bool:
    return value.producer() is None and str(value.name).startswith(TABLE_PREFIX)


def _row_width(value: ir.Value | None) -> int | None:
    """The numbers that one row of a table's entry has; None where its shape does not say."""
    width = value.shape[-1] if value is not None and value.shape is not None else None
    return width if isinstance(width, int) else None


@dataclass
class _Copy:
    shipped: ShippedGraphs
    stops: frozenset[str]
    values: dict[ir.Value, ir.Value] = field(default_factory=dict)
    inputs: list[ir.Value] = field(default_factory=list)
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    parts: dict[ir.Value, list[ir.Value]] = field(default_factory=dict)

    def value(self, wanted: ir.Value) -> ir.Value:
        original = self.shipped.source(wanted)
        if original in self.values:
            return self.values[original]
        producer = original.producer()
        labels = self.shipped.labels_of(original)
        if labels and self.stops.issuperset(labels):
            own = self._joined(original, labels)
        elif original.name in self.stops or (producer is None and original.const_value is None):
            own = self._input(_like(original))
        elif producer is None:
            own = self._constant(original)
        else:
            entry = self.shipped.table_entry(producer, producer.outputs.index(original))
            own = self.value(entry) if entry is not None else self._node(producer, original)
        self.values[original] = own
        return own

    def part(self, joint: ir.Value, position: int) -> ir.Value:
        """One of the borders that `joint` holds. Raises ParityError where no input of the piece has its length."""
        whole = self.value(joint)
        if whole not in self.parts:
            lengths = [self._length(dim) for dim in _terms(joint)]
            sizes = self._made("Concat", lengths, f"{joint.name}@lengths", axis=0)
            node = ir.Node("", "Split", [whole, sizes], [ir.AttrInt64("axis", 1)], num_outputs=len(lengths))
            self.nodes.append(node)
            for output, dim in zip(node.outputs, _terms(joint), strict=True):
                output.type, output.shape = joint.type, _part_shape(joint, dim)
            self.parts[whole] = list(node.outputs)
        return self.parts[whole][position]

    def _joined(self, joint: ir.Value, labels: Sequence[str]) -> ir.Value:
        halves = []
        for label, dim in zip(labels, _terms(joint), strict=True):
            half = ir.Value(name=label, type=joint.type)
            half.shape = _part_shape(joint, dim)
            halves.append(self._input(half))
        own = self._made("Concat", halves, f"{joint.name}@joined", axis=1)
        own.type, own.shape = joint.type, _batch_shape(joint)
        return own

    def _input(self, wanted: ir.Value) -> ir.Value:
        for own in self.inputs:
            if own.name == wanted.name:
                return own
        self.inputs.append(wanted)
        return wanted

    def _length(self, dim: str) -> ir.Value:
        for own in self.inputs:
            for axis, found in enumerate(own.shape or ()):
                if not isinstance(found, int) and found.value == dim:
                    return self._made("Shape", [own], f"{dim}@{len(self.nodes)}", start=axis, end=axis + 1)
        raise ParityError(f"no input of the piece has the dimension {dim!r}; its inputs: {[v.name for v in self.inputs]}")

    def _made(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
        node = ir.Node("", op_type, inputs, [ir.AttrInt64(key, value) for key, value in attributes.items()], num_outputs=1)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, original: ir.Value) -> ir.Value:
        assert original.name is not None
        known = self.constants.get(original.name)
        if known is None:
            known = _like(original)
            known.const_value = original.const_value
            self.constants[original.name] = known
        return known

    def _node(self, node: ir.Node, wanted: ir.Value) -> ir.Value:
        attributes = dict(node.attributes)
        inputs = [
            None if v is None else (self._small_table(node, v, attributes) if _is_table(v) else self.value(v))
            for v in node.inputs
        ]
        own = ir.Node(node.domain, node.op_type, inputs, list(attributes.values()), num_outputs=len(node.outputs))
        self.nodes.append(own)
        for position, (source, output) in enumerate(zip(node.outputs, own.outputs, strict=True)):
            output.type = source.type
            output.shape = _batch_shape(source)
            output.name = f"{source.name}@{len(self.nodes)}.{position}"  # names may repeat from segment to segment
            self.values[source] = output
        return own.outputs[node.outputs.index(wanted)]

    def _small_table(self, node: ir.Node, table: ir.Value, attributes: dict[str, ir.Attr]) -> ir.Value:
        """A table of the entries alone that an op of ours reads at its `…_at`; `attributes` then say where they are in it."""
        width = node.outputs[0].shape[-1] if node.outputs[0].shape is not None else None
        entries: list[ir.Value] = []
        for name in sorted(key for key in attributes if key.endswith("_at")):
            entry = self.shipped.entry_at(table, attributes[name].as_int(), width if isinstance(width, int) else None)
            attributes[name] = ir.AttrInt64(name, len(entries) * int(width))  # type: ignore[arg-type]
            entries.append(self.value(entry))
        if not entries:
            raise ParityError(f"{node.op_type} reads the table {table.name!r}, but no attribute says where")
        return self._made("Concat", entries, f"{table.name}@{len(self.nodes)}", axis=1)


def _terms(joint: ir.Value) -> list[str]:
    """The dimensions of the parts along the tokens, which the shape gives as their sum. Raises ParityError without one."""
    dim = joint.shape[1] if joint.shape is not None and len(joint.shape) > 1 else None
    if dim is None or isinstance(dim, int) or dim.value is None or " + " not in dim.value:
        raise ParityError(f"{joint.name!r} holds several borders, but its shape {joint.shape} does not say how long each is")
    return dim.value.split(" + ")


def _part_shape(joint: ir.Value, dim: str) -> ir.Shape:
    shape = _batch_shape(joint)
    assert shape is not None
    return ir.Shape([d if isinstance(d, int) else d.value for d in [shape[0], ir.SymbolicDim(dim), *shape[2:]]])


def _like(value: ir.Value) -> ir.Value:
    own = ir.Value(name=value.name, type=value.type)
    own.shape = _batch_shape(value)
    return own


def _batch_shape(value: ir.Value) -> ir.Shape | None:
    """One step's rows: what condition computes for all steps is one batch here."""
    if value.shape is None:
        return None
    return ir.Shape([d if isinstance(d, int) else (BATCH if d.value == CONDITION_ROWS else d.value) for d in value.shape])
