"""QkNormRope in Triton: the RMS norm of each head and the rotation of its pairs."""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["norm_rope", "qk_norm_rope"]


@triton.jit
def norm_rope(x, norm, cos, sin, position, inside, HEAD_DIM: tl.constexpr, EPSILON: tl.constexpr):
    """x: [rows, power of two ≥ HEAD_DIM] float32, zero beyond HEAD_DIM → the same, normalised and turned.

    norm: [HEAD_DIM], cos, sin: [positions, HEAD_DIM / 2], float32. position: [rows], the row of the tables, where `inside`.
    """
    ROWS: tl.constexpr = x.shape[0]
    BLOCK_D: tl.constexpr = x.shape[1]
    HALF: tl.constexpr = HEAD_DIM // 2
    d = tl.arange(0, BLOCK_D)
    size = tl.sum(x * x, 1) / HEAD_DIM
    x = x * (1.0 / tl.sqrt(size + EPSILON))[:, None] * tl.load(norm + d, d < HEAD_DIM, other=0.0)[None, :]
    i = tl.arange(0, BLOCK_D // 2)
    at = position[:, None] * HALF + i[None, :]
    known = inside[:, None] & (i[None, :] < HALF)
    c, s = tl.load(cos + at, known, other=0.0), tl.load(sin + at, known, other=0.0)
    a, b = tl.split(tl.reshape(x, (ROWS, BLOCK_D // 2, 2)))
    return tl.reshape(tl.join(a * c - b * s, a * s + b * c), (ROWS, BLOCK_D))


@triton.jit
def qk_norm_rope(
    x, norm, cos, sin, tokens, width, all_tokens, before, y,
    HEAD_DIM: tl.constexpr, EPSILON: tl.constexpr, SCALE: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """x: [batch, tokens, width] → rows before .. before + tokens of y: [batch, all_tokens, width], and of cos and sin.

    SCALE: None, or the attention's: y is then times SCALE · log2(e), as its kernel takes queries.
    Grid: (tiles of tokens, heads, batch).
    """
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    at = t[:, None] * width + tl.program_id(1) * HEAD_DIM + d[None, :]
    inside = (t[:, None] < tokens) & (d[None, :] < HEAD_DIM)
    part = tl.load(x + row * tokens * width + at, inside, other=0.0).to(tl.float32)
    part = norm_rope(part, norm, cos, sin, before + t, t < tokens, HEAD_DIM, EPSILON)
    if SCALE is not None:
        part *= SCALE * 1.4426950408889634
    tl.store(y + (row * all_tokens + before) * width + at, part.to(y.dtype.element_ty), inside)
