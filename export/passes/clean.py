"""Fold constants, inline functions, drop what nobody reads, merge equal subexpressions. Parameters are inputs here, so none can be folded."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

__all__ = ["clean", "sweep"]


def clean(model: ir.Model) -> None:
    """Rules: (1) inline and fold until nothing changes; (2) remove metadata, whose stack traces name the machine."""
    optimizer.optimize_ir(model)
    common.ClearMetadataAndDocStringPass()(model)
    _drop_identities(model)


def sweep(model: ir.Model) -> None:
    """Remove nodes and constants that nobody reads."""
    common.RemoveUnusedNodesPass()(model)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            model.graph.initializers.pop(name)


def _drop_identities(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
            source = node.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)
