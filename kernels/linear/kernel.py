"""The Linear family in Triton: tiles of x · weightᵀ summed in float32, the epilogue applied to them before the one store.

Blocks are numbered so that those which run together share rows of x and of the weight in the L2 cache: GROUP_M tiles of rows
for every column of tiles.
"""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["linear"]


@triton.jit
def linear(
    x_0,
    x_1,
    weight,
    bias,
    modulation,
    residual,
    tokens,
    in_0,
    in_1,
    out,
    columns,
    gate_at,
    y,
    GELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """y = x · weightᵀ, then + bias, then gelu (the tanh form) with GELU, then residual + gate · y.

    x_0: [batch, tokens, in_0], x_1: [batch, tokens, in_1] or None, its features after those of x_0. weight: [out, in_0 + in_1].
    bias: [out] float32 or None. modulation: [batch, columns] float32 or None; the gate is its columns gate_at .. gate_at + out.
    residual: as y, or None. y: [batch, tokens, out]. Grid: (tiles of tokens · tiles of out, batch).
    """
    row = tl.program_id(1).to(tl.int64)
    tile_m, tile_n = _tile(tl.program_id(0), tl.cdiv(tokens, BLOCK_M), tl.cdiv(out, BLOCK_N), GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the last read the last: what they give is not stored, and loads need no mask.
    from_m = tl.minimum(m, tokens - 1).to(tl.int64)
    from_n = tl.minimum(n, out - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if x_1 is None:
        weight_rows = weight + from_n * in_0
        acc = _product(acc, x_0 + (row * tokens + from_m) * in_0, weight_rows, in_0, BLOCK_K)
    else:
        weight_rows = weight + from_n * (in_0 + in_1)
        acc = _product(acc, x_0 + (row * tokens + from_m) * in_0, weight_rows, in_0, BLOCK_K)
        acc = _product(acc, x_1 + (row * tokens + from_m) * in_1, weight_rows + in_0, in_1, BLOCK_K)
    if bias is not None:
        acc += tl.load(bias + n, n < out, other=0.0)[None, :]
    if GELU:
        acc = _gelu(acc)
    at = (row * tokens + m[:, None]) * out + n[None, :]
    inside = (m[:, None] < tokens) & (n[None, :] < out)
    if residual is not None:
        gate = tl.load(modulation + row * columns + gate_at + n, n < out, other=0.0)
        acc = tl.load(residual + at, inside, other=0.0).to(tl.float32) + gate[None, :] * acc
    tl.store(y + at, acc.to(y.dtype.element_ty), inside)


@triton.jit
def _tile(block, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Block number → (tile of rows, tile of columns): down GROUP_M rows, then on to the next column."""
    group = block // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = block - group * GROUP_M * tiles_n
    return first + within % height, within // height


@triton.jit
def _product(acc, x, weight, size, BLOCK_K: tl.constexpr):
    """acc + x · weightᵀ over `size` features. x: [BLOCK_M], weight: [BLOCK_N] pointers to rows."""
    k = tl.arange(0, BLOCK_K)
    full = size // BLOCK_K * BLOCK_K
    for start in tl.range(0, full, BLOCK_K):
        part = tl.load(x[:, None] + (start + k)[None, :])
        other = tl.load(weight[:, None] + (start + k)[None, :])
        acc = tl.dot(part, tl.trans(other), acc, input_precision="tf32x3")
    if full < size:
        inside = (full + k)[None, :] < size
        part = tl.load(x[:, None] + (full + k)[None, :], inside, other=0.0)
        other = tl.load(weight[:, None] + (full + k)[None, :], inside, other=0.0)
        acc = tl.dot(part, tl.trans(other), acc, input_precision="tf32x3")
    return acc


@triton.jit
def _gelu(x):
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), as x · sigmoid(2 · …), which needs one exponential."""
    return x / (1.0 + tl.exp2(x * (-2.302208198 - 0.1029432397 * x * x)))
