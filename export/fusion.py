"""Reading from finished graphs which of our ops they use, and why other work stayed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from vitrify.engine.fusion import GraphFusion, LeftNodes
from vitrify.export.passes.patterns import LEFT
from vitrify.kernels.op import DOMAIN

__all__ = ["graph_fusion"]

_OWN_WEIGHTS = "has weights of its own and no modulation"
_NO_OP = "no op of ours does this"
_WORK: Mapping[str, str] = {
    "Attention": _NO_OP,
    "Conv": _NO_OP,
    "ConvTranspose": _NO_OP,
    "Elu": _NO_OP,
    "Erf": _NO_OP,
    "Gelu": _NO_OP,
    "Gemm": _NO_OP,
    "GroupNormalization": _NO_OP,
    "InstanceNormalization": _NO_OP,
    "LayerNormalization": _OWN_WEIGHTS,
    "MatMul": _NO_OP,
    "RMSNormalization": _OWN_WEIGHTS,
    "Relu": _NO_OP,
    "RotaryEmbedding": "the attention that reads it stayed",
    "Sigmoid": _NO_OP,
    "Softmax": _NO_OP,
    "Swish": _NO_OP,
    "Tanh": _NO_OP,
}
"""ONNX op → why it stayed where no pass said so. What moves, views or adds element by element is not listed."""


def graph_fusion(model: ir.Model) -> GraphFusion:
    """What the passes made of `model`, whose nodes carry the reasons that they gave."""
    ops: Counter[str] = Counter()
    left: dict[tuple[str, str], list[str]] = {}
    for node in model.graph:
        if node.domain == DOMAIN:
            ops[node.op_type] += 1
        elif LEFT in node.meta or node.op_type in _WORK:
            reason = str(node.meta.get(LEFT) or _WORK[node.op_type])
            left.setdefault((node.op_type, reason), []).append(str(node.outputs[0].name))
    rows = tuple(LeftNodes(op, reason, tuple(values)) for (op, reason), values in sorted(left.items()))
    return GraphFusion(dict(sorted(ops.items())), rows)
