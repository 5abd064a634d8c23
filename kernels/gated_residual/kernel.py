"""GatedResidual in Triton: a tile of tokens and columns shares one load of the gate."""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["gated_residual"]


@triton.jit
def gated_residual(x, y, modulation, tokens, width, columns, gate_at, out, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr):
    """out = x + gate · y. x, y, out: [batch, tokens, width], modulation: [batch, columns] float32.

    Grid: (tiles of the width, tiles of tokens, batch).
    """
    row = tl.program_id(2).to(tl.int64)
    w = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    gate = tl.load(modulation + row * columns + gate_at + w, w < width, other=0.0)
    at = row * tokens * width + t[:, None] * width + w[None, :]
    inside = (t[:, None] < tokens) & (w[None, :] < width)
    values = tl.load(x + at, inside, other=0.0).to(tl.float32)
    values += gate[None, :] * tl.load(y + at, inside, other=0.0).to(tl.float32)
    tl.store(out + at, values.to(out.dtype.element_ty), inside)
