"""FusedAttention in standard ONNX ops: what a runtime without our library executes, and what TensorRT fuses itself."""

# onnxscript reads this source; to a type checker it is pseudo-code.
# A returned name is the output's name.
# mypy: ignore-errors
# ruff: noqa: RET504

from onnxscript import opset23 as op
from onnxscript import script, values

from vitrify.kernels.attention.rounded_body import rounded

__all__ = ["BODIES"]

_VITRIFY = values.Opset("vitrify", 1)


@script(_VITRIFY, default_opset=op)
def FusedAttention(q, k, v, num_heads: int, scale: float, causal: int):  # noqa: N802
    out = op.Attention(q, k, v, q_num_heads=num_heads, kv_num_heads=num_heads, scale=scale, is_causal=causal)
    return out


@script(_VITRIFY, default_opset=op)
def FusedAttentionBias(q, k, v, bias, num_heads: int, scale: float):  # noqa: N802
    out = op.Attention(q, k, v, bias, q_num_heads=num_heads, kv_num_heads=num_heads, scale=scale)
    return out


@script(_VITRIFY, default_opset=op)
def FusedAttentionNormRotary(q, k, v, q_norm, k_norm, cos, sin, num_heads: int, scale: float, epsilon: float):  # noqa: N802
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    joined = op.Constant(value_ints=[0, 0, -1])
    spread = op.Concat(op.Shape(q, start=0, end=1), op.Constant(value_ints=[1, 1]), axis=0)
    cosine = op.Expand(cos, spread)
    sine = op.Expand(sin, spread)
    q_rows = op.Reshape(op.RMSNormalization(op.Reshape(q, split), q_norm, epsilon=epsilon), joined)
    k_rows = op.Reshape(op.RMSNormalization(op.Reshape(k, split), k_norm, epsilon=epsilon), joined)
    q_turned = op.RotaryEmbedding(q_rows, cosine, sine, interleaved=1, num_heads=num_heads)
    k_turned = op.RotaryEmbedding(k_rows, cosine, sine, interleaved=1, num_heads=num_heads)
    out = op.Attention(q_turned, k_turned, v, q_num_heads=num_heads, kv_num_heads=num_heads, scale=scale)
    return out


@script(_VITRIFY, default_opset=op)
def FusedAttention2NormRotary(  # noqa: N802
    q_0,
    k_0,
    v_0,
    q_1,
    k_1,
    v_1,
    q_norm_0,
    k_norm_0,
    q_norm_1,
    k_norm_1,
    cos,
    sin,
    num_heads: int,
    scale: float,
    epsilon: float,
):
    heads = op.Reshape(op.Constant(value_int=num_heads), op.Constant(value_ints=[1]))
    split = op.Concat(op.Constant(value_ints=[0, 0]), heads, op.Constant(value_ints=[-1]), axis=0)
    joined = op.Constant(value_ints=[0, 0, -1])
    spread = op.Concat(op.Shape(q_0, start=0, end=1), op.Constant(value_ints=[1, 1]), axis=0)
    cosine = op.Expand(cos, spread)
    sine = op.Expand(sin, spread)
    q_rows_0 = op.Reshape(op.RMSNormalization(op.Reshape(q_0, split), q_norm_0, epsilon=epsilon), joined)
    q_rows_1 = op.Reshape(op.RMSNormalization(op.Reshape(q_1, split), q_norm_1, epsilon=epsilon), joined)
    k_rows_0 = op.Reshape(op.RMSNormalization(op.Reshape(k_0, split), k_norm_0, epsilon=epsilon), joined)
    k_rows_1 = op.Reshape(op.RMSNormalization(op.Reshape(k_1, split), k_norm_1, epsilon=epsilon), joined)
    q = op.RotaryEmbedding(op.Concat(q_rows_0, q_rows_1, axis=1), cosine, sine, interleaved=1, num_heads=num_heads)
    k = op.RotaryEmbedding(op.Concat(k_rows_0, k_rows_1, axis=1), cosine, sine, interleaved=1, num_heads=num_heads)
    v = op.Concat(v_0, v_1, axis=1)
    out = op.Attention(q, k, v, q_num_heads=num_heads, kv_num_heads=num_heads, scale=scale)
    tokens = op.Concat(op.Shape(q_0, start=1, end=2), op.Shape(q_1, start=1, end=2), axis=0)
    out_0, out_1 = op.Split(out, tokens, axis=1)
    return out_0, out_1


_FAMILY = (FusedAttention, FusedAttentionBias, FusedAttentionNormRotary, FusedAttention2NormRotary)

BODIES = {
    **{f.name: f for f in _FAMILY},
    **{f"{f.name}Bf16": rounded(f"{f.name}Bf16", f) for f in _FAMILY},
}
