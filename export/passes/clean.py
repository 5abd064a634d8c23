"""Fold constants, inline functions, drop what nobody reads, merge equal subexpressions.

Parameters are inputs here, so none can be folded.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import _constant_folding as folding
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

__all__ = ["clean", "sweep"]

# onnxscript's default set without the rules that match several nodes at once: those take time quadratic in the graph.
_NO_OPS = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.min_max_rule,
    rules.max_min_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
)


def clean(model: ir.Model) -> None:
    """Rules: (1) inline functions, fold constants, remove operations that change nothing; (2) make constants initializers
    and merge equal subexpressions; (3) remove metadata, whose stack traces name the machine; (4) drop Identities."""
    ir.passes.Sequential(
        common.InlinePass(),
        folding.FoldConstantsPass(shape_inference=True, input_size_limit=8192, output_size_limit=262144),
        RewritePass(_NO_OPS),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)
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
