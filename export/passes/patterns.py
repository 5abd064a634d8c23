"""What the matching passes share: looking at a value's producer, readers and dimensions, and putting one node for several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from vitrify.kernels.op import DOMAIN

__all__ = ["LEFT", "dims", "is_alone", "leave", "made_by", "number", "our_node", "put"]

LEFT = "vitrify.left"
"""The key in a node's `meta` of why no op of ours took it; never written to a file."""


def made_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if it is of this type."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and (producer.op_type, producer.domain) == (op_type, domain) else None


def is_alone(value: ir.Value) -> bool:
    """Whether one node reads `value` and nobody else does: that node may take its producer in."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def dims(value: ir.Value | None) -> list[int | str | None] | None:
    """A value's shape as numbers and names; None where its rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def number(value: ir.Value | None) -> int | None:
    """The integer that a constant of one element holds."""
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return int(value.const_value.numpy().reshape(-1)[0])


def leave(node: ir.Node, reason: str) -> None:
    """Say why `node` stays as it is, for `inspect`; the first reason given holds."""
    node.meta.setdefault(LEFT, reason)


def our_node(
    op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int | float] | None = None, *, outputs: int = 1
) -> ir.Node:
    """A node of an op of ours."""
    made = [
        ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)
        for name, value in (attributes or {}).items()
    ]
    return ir.Node(DOMAIN, op_type, inputs, made, num_outputs=outputs)


def put(graph: ir.Graph, node: ir.Node, *results: ir.Value) -> None:
    """Put `node` in the place of the one that makes `results`: its outputs take their names, shapes and readers."""
    replaced = results[0].producer()
    assert replaced is not None
    graph.insert_after(replaced, [node])
    names = [value.name for value in results]
    for value, output in zip(results, node.outputs, strict=True):
        output.type, output.shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, output, replace_graph_outputs=True)
    graph.remove(replaced, safe=True)
    for output, name in zip(node.outputs, names, strict=True):
        output.name = name
