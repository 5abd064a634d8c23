"""Which ops `vitrify bench ops` times, at which sizes, as data: a row per case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrify.engine.dtypes import DType
from vitrify.engine.errors import SpecError
from vitrify.kernels import registry

__all__ = ["OP_CASES", "OpCase", "op_case"]


@dataclass(frozen=True)
class OpCase:
    """One op at one size.

    dims: every dimension name of the op's contract → size; a sum of dimensions follows.
    flops: floating-point operations of the matrix products; 0 where the op has none and moves memory alone.
    constants: inputs that are initializers, with their dtype there. attributes: what the node says.
    """

    name: str
    op: str
    dims: Mapping[str, int]
    flops: float
    constants: Mapping[str, DType] = field(default_factory=dict)
    attributes: Mapping[str, int | float] = field(default_factory=dict)


def _linear(name: str, op: str, tokens: int, features: tuple[int, ...], out: int, precision: str = "") -> OpCase:
    gated = op.endswith("GatedResidual")
    dims = {"batch": 1, "tokens": tokens, "out": out} | ({"columns": 6 * out} if gated else {})
    names = ("in",) if len(features) == 1 else tuple(f"in_{part}" for part in range(len(features)))
    constants = {"weight": DType.BFLOAT16, "bias": DType.FLOAT32}
    if precision == "Int8":
        constants |= {"weight": DType.INT8, "weight_scale": DType.FLOAT32}
    return OpCase(
        f"{name}, {precision.lower()}" if precision else name,
        op + precision,
        dims | dict(zip(names, features, strict=True)),
        2.0 * tokens * sum(features) * out,
        constants=constants,
        attributes={"gate_at": 2 * out} if gated else {},
    )


def _attention(
    name: str, op: str, heads: int, head_dim: int, tokens: int, keys: int | None = None, batch: int = 1, precision: str = ""
) -> OpCase:
    """keys: those of the ops that have them apart from the tokens; the ops with two parts take a part of 1/9 first."""
    contract = registry.contract(op)
    first = tokens // 9
    every = {
        "batch": batch,
        "tokens": tokens,
        "keys": keys or tokens,
        "tokens_0": first,
        "tokens_1": tokens - first,
        "width": heads * head_dim,
        "heads": heads,
        "head_dim": head_dim,
        "half": head_dim // 2,
    }
    op += precision
    said = {"num_heads": heads, "scale": head_dim**-0.5, "causal": 0, "epsilon": 1e-6}
    return OpCase(
        f"{name}, {precision.lower()}" if precision else name,
        op,
        {dim: every[dim] for dim in contract.awkward},
        4.0 * batch * tokens * (keys or tokens) * heads * head_dim,
        attributes={attribute.name: said[attribute.name] for attribute in contract.attributes},
    )


def _conv(name: str, op: str, channels: int, out: int, height: int, width: int, kernel: int = 3, precision: str = "") -> OpCase:
    """height, width: of x."""
    pixels = height * width * (4 if op.startswith("Upsample") else 1)
    dims = {"batch": 1, "in": channels, "out": out, "height": height, "width": width, "kernel": kernel}
    return OpCase(
        f"{name}, {precision.lower()}" if precision else name,
        op + precision,
        dims,
        2.0 * channels * out * kernel * kernel * pixels,
        constants={"weight": DType.BFLOAT16, "bias": DType.FLOAT32},
        attributes={"groups": 32, "epsilon": 1e-6} if "GroupNorm" in op else {},
    )


# FLUX.1-dev's VAE at 256 x 256.
_CONVS: tuple[tuple[str, str, int, int, int, int], ...] = (
    ("vae mid", "GroupNormSiluConv2dResidual", 512, 512, 32, 32),
    ("vae upsample", "UpsampleConv2d", 512, 512, 64, 64),
    ("vae last block in", "GroupNormSiluConv2d", 256, 128, 256, 256),
    ("vae last block", "GroupNormSiluConv2dResidual", 128, 128, 256, 256),
    ("vae out", "GroupNormSiluConv2d", 128, 3, 256, 256),
)

# The 146 M FLUX case: 1024 wide, 1024 image and 128 text tokens.
_FLUX: tuple[tuple[str, str, int, tuple[int, ...], int], ...] = (
    ("flux q, k, v, out", "Linear", 1024, (1024,), 1024),
    ("flux mlp in", "LinearGelu", 1024, (1024,), 4096),
    ("flux mlp out", "LinearGatedResidual", 1024, (4096,), 1024),
    ("flux text mlp in", "LinearGelu", 128, (1024,), 4096),
    ("flux text mlp out", "LinearGatedResidual", 128, (4096,), 1024),
    ("flux single q, k, v", "Linear", 1152, (1024,), 1024),
    ("flux single mlp", "LinearGelu", 1152, (1024,), 4096),
    ("flux single out", "Linear2GatedResidual", 1152, (1024, 4096), 1024),
)

# And of FLUX.1-dev at 512 px, 24 heads, 1024 image and 128 text tokens; T5-XXL's encoder over 128 tokens; the VAE's one head.
_ATTENTION: tuple[tuple[str, str, int, int, int], ...] = (
    ("flux attention", "FusedAttention2NormRotary", 8, 128, 1152),
    ("flux single attention", "FusedAttentionNormRotary", 8, 128, 1152),
    ("attention alone", "FusedAttention", 8, 128, 1152),
    ("flux-dev attention", "FusedAttentionNormRotary", 24, 128, 1152),
    ("t5 attention", "FusedAttentionBias", 64, 64, 128),
    ("vae attention", "FusedAttention", 1, 512, 4096),
)

OP_CASES: tuple[OpCase, ...] = (
    *(_linear(*row, precision) for precision in ("", "Bf16", "Int8") for row in _FLUX),
    *(_attention(*row, precision=precision) for precision in ("", "Bf16") for row in _ATTENTION),
    *(_conv(*row, precision=precision) for precision in ("", "Bf16") for row in _CONVS),
    # The sample: 192 wide, two rows of 64 image and 16 text tokens.
    _linear("sample mlp in", "LinearGelu", 160, (192,), 768),
    _linear("sample single out", "Linear2GatedResidual", 160, (192, 768), 192),
    _attention("sample attention", "FusedAttention2NormRotary", 6, 32, 80, batch=2),
    # Few rows: the weight is read for little work.
    _linear("one row", "Linear", 1, (1024,), 4096),
    _linear("16 rows", "Linear", 16, (1024,), 4096),
    _linear("64 rows", "Linear", 64, (1024,), 4096),
)


def op_case(name: str) -> OpCase:
    """The case of that name. Raises SpecError listing the names known."""
    for one in OP_CASES:
        if one.name == name:
            return one
    raise SpecError(f"op case {name!r} is unknown; known: {', '.join(one.name for one in OP_CASES)}")
