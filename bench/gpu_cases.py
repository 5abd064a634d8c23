"""What `vitrify bench gpu` times, as data: the ops of a FLUX.1-dev step at 1024 × 1024, and of its text encoder and its VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitrify.engine.dtypes import DType
from vitrify.kernels.aot.description import as_float32

__all__ = ["GPU_CASES", "GpuCase"]


@dataclass(frozen=True)
class GpuCase:
    """One op at one size. dims, attributes: of the op's contract. dtype: of the activations.

    flops: of the matrix products; 0 where the op moves memory alone.
    """

    name: str
    op: str
    dtype: DType
    dims: Mapping[str, int]
    attributes: Mapping[str, int | float]
    flops: float = 0.0


_WIDTH, _IMAGE, _TEXT = 3072, 4096, 512
_TOKENS = _IMAGE + _TEXT
_EPSILON = as_float32(1e-6)


def _attention(
    name: str, op: str, heads: int, head_dim: int, tokens: int, dtype: DType = DType.BFLOAT16, **attributes: int | float
) -> GpuCase:
    every = {"batch": 1, "tokens": tokens, "width": heads * head_dim}
    tables = {"head_dim": head_dim, "half": head_dim // 2}
    dims = {
        "FusedAttention": {**every, "keys": tokens},
        "FusedAttentionBias": {**every, "keys": tokens, "heads": heads},
        "FusedAttentionNormRotary": {**every, **tables},
        "FusedAttention2NormRotary": {**every, "tokens_0": _TEXT, "tokens_1": tokens - _TEXT, **tables},
    }[op]
    if op == "FusedAttention2NormRotary":
        del dims["tokens"]
    attributes = {"num_heads": heads, "scale": as_float32(head_dim**-0.5), **attributes}
    flops = 4.0 * tokens * tokens * heads * head_dim / (2 if attributes.get("causal") else 1)
    return GpuCase(f"{name}, {dtype.value}", op, dtype, dims, attributes, flops)


def _linear(name: str, op: str, tokens: int, features: tuple[int, ...], out: int, dtype: DType = DType.BFLOAT16) -> GpuCase:
    names = ("in",) if len(features) == 1 else tuple(f"in_{part}" for part in range(len(features)))
    gated = op.endswith("GatedResidual")
    dims = {"batch": 1, "tokens": tokens, "out": out, **dict(zip(names, features, strict=True))}
    if gated:
        dims["columns"] = 6 * out
    attributes = {"gate_at": 2 * out} if gated else {}
    return GpuCase(f"{name}, {dtype.value}", op, dtype, dims, attributes, 2.0 * tokens * sum(features) * out)


def _moved(name: str, op: str, dtype: DType = DType.BFLOAT16, **attributes: int | float) -> GpuCase:
    dims = {"batch": 1, "tokens": _IMAGE, "width": _WIDTH}
    if attributes:
        dims["columns"] = 6 * _WIDTH
    if op == "QkNormRope":
        dims, attributes = {**dims, "head_dim": 128, "half": 64}, {"num_heads": 24, "epsilon": _EPSILON}
    return GpuCase(f"{name}, {dtype.value}", op, dtype, dims, attributes)


GPU_CASES: tuple[GpuCase, ...] = (
    *(
        _attention(
            f"FLUX single block's attention, {_TOKENS} tokens", "FusedAttentionNormRotary", 24, 128, _TOKENS, d, epsilon=_EPSILON
        )
        for d in (DType.BFLOAT16, DType.FLOAT16)
    ),
    _attention(
        f"FLUX double block's attention, {_TEXT} + {_IMAGE} tokens",
        "FusedAttention2NormRotary",
        24,
        128,
        _TOKENS,
        epsilon=_EPSILON,
    ),
    *(
        _attention(
            f"attention without a prologue, {_TOKENS} tokens, 24 heads of 128", "FusedAttention", 24, 128, _TOKENS, d, causal=0
        )
        for d in (DType.BFLOAT16, DType.FLOAT16)
    ),
    _attention(f"attention, {_TOKENS} tokens, 48 heads of 64", "FusedAttention", 48, 64, _TOKENS, causal=0),
    _attention("T5-XXL's attention, 512 tokens, 64 heads of 64", "FusedAttentionBias", 64, 64, 512, scale=1.0),
    _attention("VAE's attention, 16384 tokens, one head of 512", "FusedAttention", 1, 512, 16384, causal=0),
    _attention(f"attention, {_TOKENS} tokens, 24 heads of 128", "FusedAttention", 24, 128, _TOKENS, DType.FLOAT32, causal=0),
    *(
        case
        for d in (DType.BFLOAT16, DType.FLOAT16)
        for case in (
            _linear("FLUX q, k or v, 3072 → 3072", "Linear", _IMAGE, (_WIDTH,), _WIDTH, d),
            _linear("FLUX q, k, v in one, 3072 → 9216", "Linear", _IMAGE, (_WIDTH,), 3 * _WIDTH, d),
            _linear("FLUX MLP's first, 3072 → 12288", "LinearGelu", _IMAGE, (_WIDTH,), 4 * _WIDTH, d),
            _linear("FLUX MLP's second, 12288 → 3072", "LinearGatedResidual", _IMAGE, (4 * _WIDTH,), _WIDTH, d),
            _linear(
                "FLUX single block's last, 3072 + 12288 → 3072", "Linear2GatedResidual", _TOKENS, (_WIDTH, 4 * _WIDTH), _WIDTH, d
            ),
        )
    ),
    _linear("FLUX q, k or v, 3072 → 3072", "Linear", _IMAGE, (_WIDTH,), _WIDTH, DType.FLOAT32),
    _moved("modulated LayerNorm, 4096 × 3072", "AdaLayerNorm", factor_at=0, shift_at=_WIDTH, epsilon=_EPSILON),
    _moved("gate and residual, 4096 × 3072", "GatedResidual", gate_at=2 * _WIDTH),
    _moved("q or k norm and rotation, 4096 × 3072", "QkNormRope"),
    _moved("first-block difference, 4096 × 3072", "ResidualDiff"),
    _moved("Taylor update of order 1, 4096 × 3072", "TaylorUpdate1"),
    _moved("Taylor prediction of order 1, 4096 × 3072", "TaylorPredict1"),
)
