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
    # Rows beyond the last read the last: what they give is not stored, and loads need no mask. They are counted from the
    # tile's first, whose address is one for the block: offsets of elements then fit 32 bits, half the registers of pointers.
    x_m = tl.minimum(tl.arange(0, BLOCK_M), tokens - 1 - tile_m * BLOCK_M)
    w_n = tl.minimum(tl.arange(0, BLOCK_N), out - 1 - tile_n * BLOCK_N)
    first_m = row * tokens + tile_m * BLOCK_M
    first_n = (tile_n * BLOCK_N).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if x_1 is None:
        acc = _product(acc, x_0 + first_m * in_0, weight + first_n * in_0, x_m * in_0, w_n * in_0, in_0, BLOCK_K)
    else:
        weight += first_n * (in_0 + in_1)
        weight_rows = w_n * (in_0 + in_1)
        acc = _product(acc, x_0 + first_m * in_0, weight, x_m * in_0, weight_rows, in_0, BLOCK_K)
        acc = _product(acc, x_1 + first_m * in_1, weight + in_0, x_m * in_1, weight_rows, in_1, BLOCK_K)
    table = modulation
    if residual is not None:
        table = modulation + row * columns + gate_at
        residual += first_m * out
    y += first_m * out
    left = tokens - tile_m * BLOCK_M
    from_n = tile_n * BLOCK_N
    if BLOCK_N >= 128:
        # In quarters: residual, sums and addresses of the whole tile at once would not fit the registers.
        one, other = _halves(acc)
        first, second = _halves(one)
        third, fourth = _halves(other)
        _finish(first, bias, table, residual, from_n, left, out, y, GELU)
        _finish(second, bias, table, residual, from_n + BLOCK_N // 4, left, out, y, GELU)
        _finish(third, bias, table, residual, from_n + BLOCK_N // 2, left, out, y, GELU)
        _finish(fourth, bias, table, residual, from_n + BLOCK_N // 4 * 3, left, out, y, GELU)
    else:
        _finish(acc, bias, table, residual, from_n, left, out, y, GELU)


@triton.jit
def _halves(acc):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _finish(acc, bias, gate, residual, from_n, left, out, y, GELU: tl.constexpr):
    """The epilogue of acc: [rows, columns from from_n], and its store. residual, y: the tile's first row; `left` rows are to
    be stored. gate: this batch row's gate, or anything where there is no residual."""
    m = tl.arange(0, acc.shape[0])
    n = from_n + tl.arange(0, acc.shape[1])
    there = n < out
    if bias is not None:
        acc += tl.load(bias + n, there, other=0.0)[None, :]
    if GELU:
        acc = _gelu(acc)
    at = m[:, None] * out + n[None, :]
    inside = (m[:, None] < left) & there[None, :]
    if residual is not None:
        gates = tl.load(gate + n, there, other=0.0)
        acc = tl.load(residual + at, inside, other=0.0).to(tl.float32) + gates[None, :] * acc
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
def _product(acc, x, weight, x_rows, weight_rows, size, BLOCK_K: tl.constexpr):
    """acc + x · weightᵀ over `size` features. x, weight: the tile's first rows; x_rows: [BLOCK_M], weight_rows: [BLOCK_N]
    int32, where each row begins from there."""
    k = tl.arange(0, BLOCK_K)
    x_at = x_rows[:, None] + k[None, :]
    weight_at = weight_rows[:, None] + k[None, :]
    full = size // BLOCK_K * BLOCK_K
    for start in tl.range(0, full, BLOCK_K):
        part = tl.load(x + start + x_at)
        other = tl.load(weight + start + weight_at)
        acc = tl.dot(part, tl.trans(other), acc, input_precision="tf32x3")
    if full < size:
        inside = (full + k)[None, :] < size
        part = tl.load(x + full + x_at, inside, other=0.0)
        other = tl.load(weight + full + weight_at, inside, other=0.0)
        acc = tl.dot(part, tl.trans(other), acc, input_precision="tf32x3")
    return acc


@triton.jit
def _gelu(x):
    """x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), as x · sigmoid(2 · …), which needs one exponential."""
    return x / (1.0 + tl.exp2(x * (-2.302208198 - 0.1029432397 * x * x)))
