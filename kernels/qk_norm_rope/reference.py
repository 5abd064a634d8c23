"""What QkNormRope computes, in PyTorch, in the dtype of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["REFERENCES", "norm_rope"]


def norm_rope(x: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, num_heads: int, epsilon: float) -> Tensor:
    """x: [batch, tokens, width], norm: [head_dim], cos, sin: [tokens, head_dim / 2] → [batch, tokens, width]."""
    x = x.reshape(*x.shape[:2], num_heads, -1)
    x = x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * norm
    a, b = x.reshape(*x.shape[:3], -1, 2).unbind(dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # The same for every head.
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(2)


def _qk_norm_rope(x: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, *, num_heads: int, epsilon: float) -> tuple[Tensor]:
    return (norm_rope(x, norm, cos, sin, num_heads, epsilon),)


REFERENCES = {"QkNormRope": _qk_norm_rope}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
