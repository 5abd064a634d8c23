"""ResidualDiff in Triton: one pass over the data for the residual and its sums, then a short one over the partial sums.

Sums are float32 and deterministic: which elements meet in which lane, and in which order, depends on the shape alone.
"""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["residual_diff", "residual_diff_total"]


@triton.jit
def residual_diff(h1, h0, r_ref, row, r, partial, PIECE: tl.constexpr, BLOCK: tl.constexpr):
    """r = h1 − h0 rounded to its dtype, and Σ|r − r_ref|, Σ|r_ref| of each piece of PIECE elements of a row.

    h1, h0, r_ref, r: [batch, row]. partial: [batch, pieces, 2] float32. Grid: (pieces, batch).
    """
    piece = tl.program_id(0)
    batch = tl.program_id(1)
    at_row = batch.to(tl.int64) * row
    moved = tl.zeros((BLOCK,), tl.float32)
    size = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, PIECE, BLOCK):
        at = piece * PIECE + start + tl.arange(0, BLOCK)
        inside = at < row
        now = tl.load(h1 + at_row + at, inside, other=0.0).to(tl.float32) - tl.load(h0 + at_row + at, inside, other=0.0).to(
            tl.float32
        )
        # The sums are those of the residual that is handed on: an unchanged one must measure as zero.
        now = now.to(r.dtype.element_ty)
        before = tl.load(r_ref + at_row + at, inside, other=0.0).to(tl.float32)
        tl.store(r + at_row + at, now, inside)
        moved += tl.abs(now.to(tl.float32) - before)
        size += tl.abs(before)
    to = partial + (batch.to(tl.int64) * tl.num_programs(0) + piece) * 2
    tl.store(to, tl.sum(moved, 0))
    tl.store(to + 1, tl.sum(size, 0))


@triton.jit
def residual_diff_total(partial, pieces, sums, BLOCK: tl.constexpr):
    """sums: [batch, 2] float32, the pieces of each row of `partial` [batch, pieces, 2] added up. Grid: (batch,)."""
    batch = tl.program_id(0)
    rows = partial + batch.to(tl.int64) * pieces * 2
    moved = tl.zeros((BLOCK,), tl.float32)
    size = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, pieces, BLOCK):
        at = start + tl.arange(0, BLOCK)
        moved += tl.load(rows + at * 2, at < pieces, other=0.0)
        size += tl.load(rows + at * 2 + 1, at < pieces, other=0.0)
    tl.store(sums + batch * 2, tl.sum(moved, 0))
    tl.store(sums + batch * 2 + 1, tl.sum(size, 0))
