"""One call of every op that has GPU kernels, small, with odd token counts and constants that kernels are compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitrify.kernels.aot.description import as_float32

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """Sizes of the dimensions, and the node's attributes."""

    dims: Mapping[str, int]
    attributes: Mapping[str, int | float]


_EPSILON = {"epsilon": as_float32(1e-6)}
_HEADS = {"num_heads": 2, "scale": as_float32(32**-0.5)}
_HIDDEN = {"batch": 2, "tokens": 63, "width": 64}
_KEYS = {"batch": 2, "tokens": 63, "keys": 123, "width": 64}
_LINEAR = {"batch": 2, "tokens": 63, "in": 80, "out": 48}
_ADA = Case({**_HIDDEN, "columns": 192}, {"factor_at": 64, "shift_at": 128, **_EPSILON})
_TABLES = {"head_dim": 32, "half": 16}

CASES: Mapping[str, Case] = {
    "AdaLayerNorm": _ADA,
    "AdaRMSNorm": _ADA,
    "FusedAttention": Case(_KEYS, {**_HEADS, "causal": 0}),
    "FusedAttentionBias": Case({**_KEYS, "heads": 2}, {"num_heads": 2, "scale": 1.0}),
    "FusedAttentionNormRotary": Case({**_HIDDEN, **_TABLES}, {**_HEADS, **_EPSILON}),
    "FusedAttention2NormRotary": Case(
        {"batch": 2, "tokens_0": 17, "tokens_1": 123, "width": 64, **_TABLES}, {**_HEADS, **_EPSILON}
    ),
    "GatedResidual": Case({**_HIDDEN, "columns": 192}, {"gate_at": 64}),
    "Linear": Case(_LINEAR, {}),
    "LinearNoBias": Case(_LINEAR, {}),
    "LinearGelu": Case(_LINEAR, {}),
    "LinearGatedResidual": Case({**_LINEAR, "columns": 96}, {"gate_at": 48}),
    "Linear2GatedResidual": Case({"batch": 2, "tokens": 63, "in_0": 80, "in_1": 112, "out": 48, "columns": 96}, {"gate_at": 48}),
    "QkNormRope": Case({**_HIDDEN, **_TABLES}, {"num_heads": 2, **_EPSILON}),
    "ResidualDiff": Case(_HIDDEN, {}),
    "TaylorPredict1": Case(_HIDDEN, {}),
    "TaylorPredict2": Case(_HIDDEN, {}),
    "TaylorUpdate1": Case(_HIDDEN, {}),
    "TaylorUpdate2": Case(_HIDDEN, {}),
}
