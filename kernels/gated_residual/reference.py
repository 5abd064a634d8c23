"""What GatedResidual computes, in PyTorch, in the dtype of its inputs."""

from __future__ import annotations

from torch import Tensor

__all__ = ["REFERENCES"]


def _gated_residual(x: Tensor, y: Tensor, modulation: Tensor, *, gate_at: int) -> tuple[Tensor]:
    """x, y: [batch, tokens, width]; modulation: [batch, columns], one row for all tokens of a row of the batch."""
    return (x + modulation[:, None, gate_at : gate_at + x.shape[2]] * y,)


REFERENCES = {"GatedResidual": _gated_residual}
"""Op → inputs in the contract's order, attributes by name → a tuple of outputs."""
