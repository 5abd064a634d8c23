"""What the Linear family computes, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

__all__ = ["REFERENCES"]

Tensor = torch.Tensor


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor]:
    """y: [batch, tokens, out] = x · weightᵀ + bias, in the dtype of x."""
    return (functional.linear(x, weight.to(x.dtype), bias),)


def _gelu(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor]:
    return (functional.gelu(_linear(x, weight, bias)[0], approximate="tanh"),)


def _gated_residual(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor, residual: Tensor, *, gate_at: int
) -> tuple[Tensor]:
    gate = modulation[:, None, gate_at : gate_at + weight.shape[0]]
    return (residual + gate * _linear(x, weight, bias)[0],)


def _gated_residual_2(
    x_0: Tensor, x_1: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor, residual: Tensor, *, gate_at: int
) -> tuple[Tensor]:
    return _gated_residual(torch.cat((x_0, x_1), dim=-1), weight, bias, modulation, residual, gate_at=gate_at)


REFERENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "Linear": _linear,
    "LinearNoBias": _linear,
    "LinearGelu": _gelu,
    "LinearGatedResidual": _gated_residual,
    "Linear2GatedResidual": _gated_residual_2,
}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
