"""Pieces of the shipped graphs between borders, as models of their own, so that each can be held against the eager module.

A piece is cut out of what was written: it follows a value from segment to segment by its name, and through a
modulation table by its place in it.
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
from vitrify.export.passes.hoist import BATCH
from vitrify.export.passes.segments import TABLE_PREFIX
from vitrify.export.recipe import ComponentRecipe

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

    def pieces(self) -> list[Piece]:
        """Every part between borders, then what leads to the outputs: together they are the whole component."""
        labels = {label for border in self.recipe.borders for label in border.labels if label is not None}
        groups = [(border.path, [label for label in border.labels if label is not None]) for border in self.recipe.borders]
        groups.append(("output", list(self.recipe.outputs)))
        pieces = []
        for name, wanted in groups:
            targets = [self._made[label] for label in wanted if label in self._made]
            if targets:
                pieces.append(self._piece(name, targets, frozenset(labels - set(wanted))))
        return pieces

    def _piece(self, name: str, targets: Sequence[ir.Value], stops: frozenset[str]) -> Piece:
        copy = _Copy(self, stops)
        outputs = [copy.value(target) for target in targets]
        for target, output in zip(targets, outputs, strict=True):
            output.name = target.name
        opsets = dict(next(iter(self._models.values())).opset_imports)
        graph = ir.Graph(copy.inputs, outputs, nodes=copy.nodes, name=name, opset_imports=opsets)
        for value in copy.constants.values():
            graph.register_initializer(value)
        model = ir.Model(graph, ir_version=next(iter(self._models.values())).ir_version)
        spec = GraphSpec(
            f"{self.recipe.name} piece {name}", tuple(map(tensor_spec, copy.inputs)), tuple(map(tensor_spec, outputs))
        )
        return Piece(name, ir.to_proto(model).SerializeToString(deterministic=True), spec)

    def source(self, value: ir.Value) -> ir.Value:
        """Follow a segment's input to the value of the segment that made it; a component's input is its own source."""
        if value.producer() is None and value.const_value is None and value.name in self._made:
            return self._made[value.name]
        return value

    def table_entry(self, node: ir.Node, output: int) -> ir.Value | None:
        """What condition wrote to the place that `node` (the Split of a table) reads as its `output`-th value.

        Raises ParityError where the table is read in other widths than it is written in.
        """
        table = node.inputs[0] if node.op_type == "Split" else None
        if table is None or table.producer() is not None or not (table.name or "").startswith(TABLE_PREFIX):
            return None
        made = self._made[str(table.name)].producer()
        if made is not None and made.op_type == "Pad":
            made = made.inputs[0].producer() if made.inputs[0] is not None else None
        written = [] if made is None or made.op_type != "Concat" else [_row_width(v) for v in made.inputs]
        sizes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
        read = [] if sizes is None else sizes.numpy().tolist()
        if made is None or output >= len(written) or read[: len(written)] != written:
            raise ParityError(f"{table.name!r}: entry {output} is read from widths {read}, but condition writes widths {written}")
        return made.inputs[output]


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

    def value(self, wanted: ir.Value) -> ir.Value:
        original = self.shipped.source(wanted)
        if original in self.values:
            return self.values[original]
        producer = original.producer()
        if original.name in self.stops or (producer is None and original.const_value is None):
            own = next((v for v in self.inputs if v.name == original.name), None)
            if own is None:
                own = _like(original)
                self.inputs.append(own)
        elif producer is None:
            own = self._constant(original)
        else:
            entry = self.shipped.table_entry(producer, producer.outputs.index(original))
            own = self.value(entry) if entry is not None else self._node(producer, original)
        self.values[original] = own
        return own

    def _constant(self, original: ir.Value) -> ir.Value:
        assert original.name is not None
        known = self.constants.get(original.name)
        if known is None:
            known = _like(original)
            known.const_value = original.const_value
            self.constants[original.name] = known
        return known

    def _node(self, node: ir.Node, wanted: ir.Value) -> ir.Value:
        inputs = [None if v is None else self.value(v) for v in node.inputs]
        own = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
        self.nodes.append(own)
        for position, (source, output) in enumerate(zip(node.outputs, own.outputs, strict=True)):
            output.type = source.type
            output.shape = _batch_shape(source)
            output.name = f"{source.name}@{len(self.nodes)}.{position}"  # names may repeat from segment to segment
            self.values[source] = output
        return own.outputs[node.outputs.index(wanted)]


def _like(value: ir.Value) -> ir.Value:
    own = ir.Value(name=value.name, type=value.type)
    own.shape = _batch_shape(value)
    return own


def _batch_shape(value: ir.Value) -> ir.Shape | None:
    """One step's rows: what condition computes for all steps is one batch here."""
    if value.shape is None:
        return None
    return ir.Shape([d if isinstance(d, int) else (BATCH if d.value == CONDITION_ROWS else d.value) for d in value.shape])
