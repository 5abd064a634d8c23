"""FusedAttention…Bf16 in standard ONNX ops: the float32 bodies, and in the place of their Attention what rounds its factors."""

# onnxscript reads the functions' source; to a type checker it is pseudo-code.
# mypy: ignore-errors
# The name that is returned is the output's name.
# ruff: noqa: RET504

from dataclasses import dataclass

import onnx
from onnxscript import opset23 as op
from onnxscript import script, values

__all__ = ["rounded"]

_DOMAIN = values.Opset("vitrify", 1)
_FLOAT, _BFLOAT16, _BOOL = 1, 16, 9
_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_MINUS_INFINITY = float("-inf")


@script(_DOMAIN, default_opset=op)
def _scores(q, k, num_heads: int, scale: float):
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    factor = op.Mul(op.Constant(value_float=scale), _LOG2_E)
    rounded_q = op.Cast(op.Cast(op.Mul(q, factor), to=_BFLOAT16), to=_FLOAT)
    rounded_k = op.Cast(op.Cast(k, to=_BFLOAT16), to=_FLOAT)
    queries = op.Transpose(op.Reshape(rounded_q, split), perm=[0, 2, 1, 3])
    s = op.MatMul(queries, op.Transpose(op.Reshape(rounded_k, split), perm=[0, 2, 3, 1]))
    return s


@script(_DOMAIN, default_opset=op)
def _hide_later(s, causal: int):
    rows = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(s, start=2, end=3)), 1), op.Constant(value_ints=[1]))
    columns = op.Range(0, op.Squeeze(op.Shape(s, start=3, end=4)), 1)
    hidden = op.And(op.Greater(columns, rows), op.Cast(op.Constant(value_int=causal), to=_BOOL))
    seen = op.Where(hidden, _MINUS_INFINITY, s)
    return seen


@script(_DOMAIN, default_opset=op)
def _add_bias(s, bias):
    seen = op.Add(s, op.Mul(bias, _LOG2_E))
    return seen


@script(_DOMAIN, default_opset=op)
def _show_all(s):
    seen = op.Identity(s)
    return seen


@script(_DOMAIN, default_opset=op)
def _weigh(seen, v, num_heads: int):
    last = op.Constant(value_ints=[-1])
    split = op.Concat(
        op.Constant(value_ints=[0, 0]), op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1])), last, axis=0
    )
    rounded_v = op.Cast(op.Cast(v, to=_BFLOAT16), to=_FLOAT)
    values_by_head = op.Transpose(op.Reshape(rounded_v, split), perm=[0, 2, 1, 3])
    below = op.Sub(seen, op.Ceil(op.ReduceMax(seen, last, keepdims=1)))
    weights = op.Cast(op.Cast(op.Exp(op.Mul(below, _LN_2)), to=_BFLOAT16), to=_FLOAT)
    mixed = op.Div(op.MatMul(weights, values_by_head), op.ReduceSum(weights, last, keepdims=1))
    out = op.Reshape(op.Transpose(mixed, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
    return out


@dataclass(frozen=True)
class _Rounded:
    """A float32 body with its one Attention spelled out."""

    name: str
    whole: object

    def to_function_proto(self) -> onnx.FunctionProto:
        body = self.whole.to_function_proto()
        (at,) = (i for i, node in enumerate(body.node) if node.op_type == "Attention")
        attention = body.node[at]
        causal = any(a.ref_attr_name == "causal" for a in attention.attribute)
        middle = _hide_later if causal else _add_bias if len(attention.input) > 3 else _show_all
        # The functions' names → the body's; all others get a suffix of their own.
        q, k, v, *bias = attention.input
        known = {"q": q, "k": k, "v": v, "out": attention.output[0]} | dict(zip(("bias",), bias, strict=False))
        nodes = []
        for number, step in enumerate((_scores, middle, _weigh)):
            proto = step.to_function_proto()
            for node in proto.node:
                node.name = f"{node.name}_{number}"
                for names in (node.input, node.output):
                    names[:] = [known.get(n, n if n in ("", "s", "seen") else f"{n}_{number}_of_attention") for n in names]
            nodes.extend(proto.node)
        kept = list(body.node)
        del body.node[:]
        body.node.extend([*kept[:at], *nodes, *kept[at + 1 :]])
        body.name = self.name
        return body


def rounded(name: str, whole: object) -> object:
    """The body `name` of what `whole` computes in float32, with factors rounded to bfloat16."""
    return _Rounded(name, whole)
