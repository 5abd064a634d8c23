"""Gated residuals as one op: residual + gate · branch, the gate read from the modulation table.

Runs on a loop segment after the cut, where the table is an input.
"""

from __future__ import annotations

import onnx_ir as ir

from vitrify.export.passes.modulation import TableEntry, table_entry
from vitrify.export.passes.patterns import dims, is_alone, leave, made_by, our_node, put
from vitrify.kernels.op import DOMAIN

__all__ = ["fuse_gated_residuals"]


def fuse_gated_residuals(model: ir.Model) -> None:
    """Rules: (1) Add(r, Mul(g, y)) with g an entry of the table and r, y [batch, tokens, width] becomes GatedResidual;
    (2) if y is a Linear's result that nobody else reads, LinearGatedResidual; (3) if that Linear's x is a concatenation
    of two along the features that nobody else reads, Linear2GatedResidual."""
    for node in list(model.graph):
        found = _match(node)
        if found is None:
            continue
        residual, branch, gate, product = found
        layer = made_by(branch, "Linear", DOMAIN)
        if layer is None or not is_alone(branch):
            made = our_node("GatedResidual", [residual, branch, gate.table], {"gate_at": gate.at})
        else:
            x, weight, bias = layer.inputs
            assert x is not None
            assert weight is not None
            assert bias is not None
            joined = made_by(x, "Concat")
            if joined is not None and is_alone(x) and len(joined.inputs) == 2 and joined.attributes["axis"].as_int() in (2, -1):
                parts, op_type = [v for v in joined.inputs if v is not None], "Linear2GatedResidual"
            else:
                parts, op_type, joined = [x], "LinearGatedResidual", None
            made = our_node(op_type, [*parts, weight, bias, gate.table, residual], {"gate_at": gate.at})
        put(model.graph, made, node.outputs[0])
        model.graph.remove(product, safe=True)
        if made.op_type != "GatedResidual":
            assert layer is not None
            model.graph.remove(layer, safe=True)
            if joined is not None:
                model.graph.remove(joined, safe=True)


def _match(node: ir.Node) -> tuple[ir.Value, ir.Value, TableEntry, ir.Node] | None:
    """(r, y, g, the Mul) where `node` is the Add of rule 1."""
    if node.op_type != "Add":
        return None
    for position, value in enumerate(node.inputs):
        product, residual = made_by(value, "Mul"), node.inputs[1 - position]
        if product is None or residual is None or not is_alone(product.outputs[0]):
            continue
        for side, factor in enumerate(product.inputs):
            gate, branch = table_entry(factor), product.inputs[1 - side]
            if gate is None or branch is None or table_entry(residual) is not None:
                continue
            shape = dims(branch)
            if shape is None or len(shape) != 3 or shape != dims(residual) or shape[2] != gate.width:
                leave(product, "branch and residual are not both [batch, tokens, width of the gate]")
                continue
            return residual, branch, gate, product
    return None
