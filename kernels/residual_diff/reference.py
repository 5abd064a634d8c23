"""What ResidualDiff computes, in PyTorch."""

from __future__ import annotations

import torch

__all__ = ["REFERENCES"]


def _residual_diff(h1: torch.Tensor, h0: torch.Tensor, r_ref: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """r: [batch, tokens, width], and sums: [batch, 2] float32 = (Σ|r − r_ref|, Σ|r_ref|) over tokens and width."""
    r = h1 - h0
    moved = (r - r_ref).abs().sum(dim=(1, 2))
    size = r_ref.abs().sum(dim=(1, 2))
    return r, torch.stack((moved, size), dim=1)


REFERENCES = {"ResidualDiff": _residual_diff}
"""Op → inputs in the contract's order → a tuple of outputs."""
