"""The function body of every op of ours that a graph uses, in that graph: any ONNX runtime can run it."""

from __future__ import annotations

import onnx_ir as ir

from vitrify.kernels import registry
from vitrify.kernels.op import DOMAIN

__all__ = ["attach_bodies", "ops_of"]


def ops_of(model: ir.Model) -> frozenset[str]:
    """The ops of ours that the graph's nodes are."""
    return frozenset(node.op_type for node in model.graph if node.domain == DOMAIN)


def attach_bodies(model: ir.Model) -> None:
    """Rules: (1) each op of ours that a node is gets its body, in the graph's own opset; (2) bodies that no node needs go."""
    for key in list(model.functions):
        del model.functions[key]
    opset = model.graph.opset_imports[""]
    for name in sorted(ops_of(model)):
        body = ir.serde.deserialize_function(registry.function(name, opset))
        model.functions[body.identifier()] = body
    model.graph.opset_imports.pop(DOMAIN, None)
    if model.functions:
        model.graph.opset_imports[DOMAIN] = 1
