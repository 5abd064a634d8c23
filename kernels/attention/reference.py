"""What FusedAttention computes, in PyTorch, in the dtype of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrify.kernels.qk_norm_rope.reference import norm_rope

__all__ = ["REFERENCES"]


def _attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, causal: int = 0, bias: Tensor | None = None
) -> Tensor:
    """q: [batch, tokens, width], k, v: [batch, keys, width], bias: [1, heads, tokens, keys] → [batch, tokens, width]."""
    q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, k, v))
    scores = scale * (q @ k.transpose(2, 3))
    if bias is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float, causal: int) -> tuple[Tensor]:
    return (_attention(q, k, v, num_heads, scale, causal),)


def _fused_attention_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, num_heads: int, scale: float) -> tuple[Tensor]:
    return (_attention(q, k, v, num_heads, scale, bias=bias),)


def _fused_attention_norm_rotary(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    scale: float,
    epsilon: float,
) -> tuple[Tensor]:
    q = norm_rope(q, q_norm, cos, sin, num_heads, epsilon)
    k = norm_rope(k, k_norm, cos, sin, num_heads, epsilon)
    return (_attention(q, k, v, num_heads, scale),)


def _fused_attention_2_norm_rotary(
    q_0: Tensor,
    k_0: Tensor,
    v_0: Tensor,
    q_1: Tensor,
    k_1: Tensor,
    v_1: Tensor,
    q_norm_0: Tensor,
    k_norm_0: Tensor,
    q_norm_1: Tensor,
    k_norm_1: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    num_heads: int,
    scale: float,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    cut = q_0.shape[1]
    parts = ((q_0, k_0, q_norm_0, k_norm_0, slice(0, cut)), (q_1, k_1, q_norm_1, k_norm_1, slice(cut, None)))
    q = torch.cat([norm_rope(q, norm, cos[at], sin[at], num_heads, epsilon) for q, _k, norm, _k_norm, at in parts], dim=1)
    k = torch.cat([norm_rope(k, norm, cos[at], sin[at], num_heads, epsilon) for _q, k, _q_norm, norm, at in parts], dim=1)
    out = _attention(q, k, torch.cat([v_0, v_1], dim=1), num_heads, scale)
    return out[:, :cut], out[:, cut:]


REFERENCES = {
    "FusedAttention": _fused_attention,
    "FusedAttentionBias": _fused_attention_bias,
    "FusedAttentionNormRotary": _fused_attention_norm_rotary,
    "FusedAttention2NormRotary": _fused_attention_2_norm_rotary,
}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
