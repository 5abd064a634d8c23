"""Reading from finished graphs which of our ops they use, and why other work stayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from vitrify.engine.fusion import GraphFusion, LeftNodes
from vitrify.export.passes.patterns import LEFT
from vitrify.export.work import NORMS, PRODUCTS_AND_ACTIVATIONS
from vitrify.kernels.op import DOMAIN

__all__ = ["graph_fusion"]

_NO_OP = "no op of ours does this"
_OWN_WEIGHTS = "has weights of its own and no modulation"
_WHY: Mapping[str, str] = {
    **dict.fromkeys(PRODUCTS_AND_ACTIVATIONS | NORMS, _NO_OP),
    "LayerNormalization": _OWN_WEIGHTS,
    "RMSNormalization": _OWN_WEIGHTS,
    "RotaryEmbedding": "the attention that reads it stayed",
}
"""ONNX op → why it stayed where no pass said so."""


def graph_fusion(model: ir.Model) -> GraphFusion:
    """What the passes made of `model`, whose nodes carry the reasons that they gave."""
    ops: Counter[str] = Counter()
    left: dict[tuple[str, str], list[str]] = {}
    for node in model.graph:
        if node.domain == DOMAIN:
            ops[node.op_type] += 1
        elif LEFT in node.meta or node.op_type in _WHY:
            reason = str(node.meta.get(LEFT) or _WHY[node.op_type])
            left.setdefault((node.op_type, reason), []).append(str(node.outputs[0].name))
    rows = tuple(LeftNodes(op, reason, tuple(values)) for (op, reason), values in sorted(left.items()))
    return GraphFusion(dict(sorted(ops.items())), rows)
