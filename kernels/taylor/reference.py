"""What the Taylor family computes, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["REFERENCES"]

Tensor = torch.Tensor


def _update_1(y: Tensor, f0: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """g0 = y(s0) and g1 = y[s0, s1], of y now and f0 = y(s1) before. inverse: [1] = 1 / (s0 − s1)."""
    return y, (y - f0) * inverse[0]


def _update_2(y: Tensor, f0: Tensor, f1: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """And g2 = y[s0, s1, s2], with f1 = y[s1, s2]. inverse: [2] = (1 / (s0 − s1), 1 / (s0 − s2))."""
    g1 = (y - f0) * inverse[0]
    return y, g1, (g1 - f1) * inverse[1]


def _predict_1(f0: Tensor, f1: Tensor, ahead: Tensor) -> tuple[Tensor]:
    """p(s0 + δ). ahead: [1] = δ."""
    return (f0 + f1 * ahead[0],)


def _predict_2(f0: Tensor, f1: Tensor, f2: Tensor, ahead: Tensor) -> tuple[Tensor]:
    """p(s0 + δ). ahead: [2] = (δ, δ + s0 − s1)."""
    return (f0 + ahead[0] * (f1 + ahead[1] * f2),)


REFERENCES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "TaylorUpdate1": _update_1,
    "TaylorUpdate2": _update_2,
    "TaylorPredict1": _predict_1,
    "TaylorPredict2": _predict_2,
}
"""Op → inputs in the contract's order → a tuple of outputs."""
