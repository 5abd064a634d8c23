"""What FusedAttention computes, in PyTorch, in the dtype of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vitrify.kernels.qk_norm_rope.reference import norm_rope

__all__ = ["REFERENCES", "attention", "rounded_attention"]

_Attention = Callable[..., Tensor]
"""q: [batch, heads, tokens, head_dim], k, v: [batch, heads, keys, head_dim], scale, and what is added to the scores: a tensor
that [batch, heads, tokens, keys] takes in, or None → [batch, heads, tokens, head_dim]."""


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """q: [batch, heads, tokens, head_dim], k, v: [batch, heads, keys, head_dim] → as q. bias: added to the scores."""
    scores = scale * (q @ k.transpose(2, 3))
    return (scores if bias is None else scores + bias).softmax(dim=-1) @ v


def rounded_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """The same of factors rounded to bfloat16: scale · log2(e) · q, k and v, and the weights 2^(score − m), where m is the row's
    greatest score, rounded up to a whole number. The sum that divides them is that of the rounded ones."""
    log2e = math.log2(math.e)
    q, k, v = (x.bfloat16().to(x.dtype) for x in (q * (scale * log2e), k, v))
    scores = q @ k.transpose(2, 3)
    if bias is not None:
        scores = scores + bias * log2e
    weights = torch.exp2(scores - scores.amax(dim=-1, keepdim=True).ceil()).bfloat16().to(q.dtype)
    return weights @ v / weights.sum(dim=-1, keepdim=True)


def _family(attend: _Attention) -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    def whole(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, bias: Tensor | None = None) -> Tensor:
        """q: [batch, tokens, width], k, v: [batch, keys, width] → [batch, tokens, width]."""
        q, k, v = (x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, scale, bias).transpose(1, 2).flatten(2)

    def plain(q: Tensor, k: Tensor, v: Tensor, *, num_heads: int, scale: float, causal: int) -> tuple[Tensor]:
        hidden = torch.full((q.shape[1], k.shape[1]), -torch.inf, dtype=q.dtype).triu(1) if causal else None
        return (whole(q, k, v, num_heads, scale, hidden),)

    def biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, num_heads: int, scale: float) -> tuple[Tensor]:
        return (whole(q, k, v, num_heads, scale, bias),)

    def norm_rotary(
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
        return (whole(q, k, v, num_heads, scale),)

    def norm_rotary_2(
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
        out = whole(q, k, torch.cat([v_0, v_1], dim=1), num_heads, scale)
        return out[:, :cut], out[:, cut:]

    return {
        "FusedAttention": plain,
        "FusedAttentionBias": biased,
        "FusedAttentionNormRotary": norm_rotary,
        "FusedAttention2NormRotary": norm_rotary_2,
    }


REFERENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    name + precision: function
    for precision, attend in (("", attention), ("Bf16", rounded_attention))
    for name, function in _family(attend).items()
}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
