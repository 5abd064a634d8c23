"""AdaLayerNorm and AdaRMSNorm in Triton: a token's row is read once and stays in registers."""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["ada_norm"]


@triton.jit
def ada_norm(
    x, modulation, tokens, width, columns, factor_at, shift_at, y,
    CENTRED: tl.constexpr, EPSILON: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = norm(x) · factor + shift. x, y: [batch, tokens, width ≤ BLOCK], modulation: [batch, columns] float32.

    CENTRED takes the mean away first (LayerNorm). Grid: (tokens, batch).
    """
    row = tl.program_id(1).to(tl.int64)
    at = (row * tokens + tl.program_id(0)) * width
    i = tl.arange(0, BLOCK)
    inside = i < width
    values = tl.load(x + at + i, inside, other=0.0).to(tl.float32)
    table = modulation + row * columns
    factor = tl.load(table + factor_at + i, inside, other=0.0)
    shift = tl.load(table + shift_at + i, inside, other=0.0)
    if CENTRED:
        values = tl.where(inside, values - tl.sum(values, 0) / width, 0.0)
    size = tl.sum(values * values, 0) / width
    values = values * (1.0 / tl.sqrt(size + EPSILON)) * factor + shift
    tl.store(y + at + i, values.to(y.dtype.element_ty), inside)
