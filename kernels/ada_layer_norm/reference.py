"""What AdaLayerNorm and AdaRMSNorm compute, in PyTorch, in the dtype of their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["REFERENCES"]


def _modulated(x: Tensor, modulation: Tensor, factor_at: int, shift_at: int) -> tuple[Tensor]:
    """x: [batch, tokens, width]; modulation: [batch, columns], one row for all tokens of a row of the batch."""
    width = x.shape[2]
    factor, shift = (modulation[:, None, at : at + width] for at in (factor_at, shift_at))
    return (x * factor + shift,)


def _ada_layer_norm(x: Tensor, modulation: Tensor, *, factor_at: int, shift_at: int, epsilon: float) -> tuple[Tensor]:
    centred = x - x.mean(dim=-1, keepdim=True)
    normalised = centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)
    return _modulated(normalised, modulation, factor_at, shift_at)


def _ada_rms_norm(x: Tensor, modulation: Tensor, *, factor_at: int, shift_at: int, epsilon: float) -> tuple[Tensor]:
    normalised = x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)
    return _modulated(normalised, modulation, factor_at, shift_at)


REFERENCES = {"AdaLayerNorm": _ada_layer_norm, "AdaRMSNorm": _ada_rms_norm}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
