"""What is split along the tokens only to be joined again stays one tensor: text and image between single blocks.

Runs on a segment after the cut, so that what leaves it keeps its form.
"""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.passes.borders import JOINT
from vitrify.export.passes.patterns import number

__all__ = ["rejoin"]

_END = 2**31 - 1


def rejoin(model: ir.Model, labels: frozenset[str]) -> None:
    """Rules: (1) Concat(x[:n], x[n:]) along one axis is x; (2) where the halves are borders, x takes both names, in order
    and with a + between: the halves may go, but what is called so can still be cut there."""
    for node in list(model.graph):
        if node.op_type != "Concat" or len(node.inputs) != 2 or node.outputs[0].is_graph_output():
            continue
        whole = _whole(node)
        if whole is None:
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], whole)
        halves = [str(v.name) for v in node.inputs if v is not None]
        if labels.issuperset(halves) and whole.producer() is not None and not whole.is_graph_output():
            whole.name = JOINT.join(halves)
        model.graph.remove(node, safe=True)


def _whole(concat: ir.Node) -> ir.Value | None:
    """x of rule 1."""
    axis = concat.attributes["axis"].as_int()
    halves = [value.producer() if value is not None else None for value in concat.inputs]
    first, second = halves
    if first is None or second is None or {first.op_type, second.op_type} != {"Slice"} or first.inputs[0] is not second.inputs[0]:
        return None
    for half in (first, second):
        if len(half.inputs) < 4 or number(half.inputs[3]) != axis or (len(half.inputs) > 4 and number(half.inputs[4]) != 1):
            return None
    end = number(second.inputs[2])
    if number(first.inputs[1]) != 0 or first.inputs[2] is not second.inputs[1] or end is None or end < _END:
        return None
    return first.inputs[0]
