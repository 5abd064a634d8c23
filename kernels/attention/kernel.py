"""FusedAttention in Triton: one pass over the keys with a running maximum and sum (flash attention).

What it does for speed: exp2 with the scale folded into its argument, full tiles of keys without a mask and masked ones apart,
loads of keys and values in flight (num_stages). Queries are normalised and turned once per tile, while they are loaded; keys
are so by qk_norm_rope before, once per key, not once per key and tile of queries.
"""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

from vitrify.kernels.qk_norm_rope.kernel import norm_rope

__all__ = ["attention"]


@triton.jit
def attention(
    q_0,
    q_1,
    k,
    v_0,
    v_1,
    bias,
    q_norm_0,
    q_norm_1,
    cos,
    sin,
    tokens_0,
    tokens_1,
    keys,
    width,
    out_0,
    out_1,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    EPSILON: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
):
    """out = softmax(SCALE · q kᵀ + bias) v of one tile of BLOCK_M queries of one head of one row.

    q_0, out_0: [batch, tokens_0, width], q_1, out_1: [batch, tokens_1, width], None with one part.
    k: [batch, all keys, width]; v_0: [batch, keys, width] and, with two parts, v_0 and v_1 shaped as q_0 and q_1.
    bias: [heads, tokens_0, keys] float32 or None. q_norm: [HEAD_DIM], cos, sin: [all tokens, HEAD_DIM / 2] float32, or None.
    Grid: (tiles of part 0 + tiles of part 1, heads, batch).
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    row = tl.program_id(2).to(tl.int64)
    at_head = tl.program_id(1) * HEAD_DIM
    tile = tl.program_id(0)

    q, out, tokens, q_norm, before = q_0, out_0, tokens_0, q_norm_0, 0
    if q_1 is not None:
        keys = tokens_0 + tokens_1
        tiles_0 = tl.cdiv(tokens_0, BLOCK_M)
        if tile >= tiles_0:
            q, out, tokens, q_norm, before = q_1, out_1, tokens_1, q_norm_1, tokens_0
            tile -= tiles_0

    first = tile * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    at = m[:, None] * width + d[None, :]
    inside = (m[:, None] < tokens) & (d[None, :] < HEAD_DIM)
    offset = row * tokens * width + at_head
    x = tl.load(q + offset + at, inside, other=0.0)
    dtype: tl.constexpr = x.dtype
    if cos is not None:
        x = norm_rope(x.to(tl.float32), q_norm, cos, sin, before + m, m < tokens, HEAD_DIM, EPSILON).to(dtype)

    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    head_bias = bias
    if bias is not None:
        head_bias = bias + tl.program_id(1).to(tl.int64) * tokens_0 * keys
    k_row = k + row * keys * width + at_head
    if q_1 is None:
        v_row = v_0 + row * keys * width + at_head
        acc, largest, total = _attend(
            acc, largest, total, x, k_row, v_row, head_bias, m, first, tokens, keys, width,
            HEAD_DIM, SCALE * LOG2_E, CAUSAL, BLOCK_M, BLOCK_N, BLOCK_TAIL,
        )  # fmt: skip
    else:
        v_row = v_0 + row * tokens_0 * width + at_head
        acc, largest, total = _attend(
            acc, largest, total, x, k_row, v_row, head_bias, m, first, tokens, tokens_0, width,
            HEAD_DIM, SCALE * LOG2_E, CAUSAL, BLOCK_M, BLOCK_N, BLOCK_TAIL,
        )  # fmt: skip
        v_row = v_1 + row * tokens_1 * width + at_head
        acc, largest, total = _attend(
            acc, largest, total, x, k_row + tokens_0 * width, v_row, head_bias, m, first, tokens, tokens_1, width,
            HEAD_DIM, SCALE * LOG2_E, CAUSAL, BLOCK_M, BLOCK_N, BLOCK_TAIL,
        )  # fmt: skip
    tl.store(out + offset + at, (acc / total[:, None]).to(dtype), inside)


@triton.jit
def _attend(
    acc, largest, total, q, k, v, bias, m, first, tokens, keys, width,
    HEAD_DIM: tl.constexpr, FACTOR: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
):  # fmt: skip
    """Goes over `keys` keys and values: full tiles first; then what is left, or the diagonal, in smaller ones with a mask."""
    full = keys
    stop = keys
    if CAUSAL:
        full = tl.minimum(first, keys)
        stop = tl.minimum(first + BLOCK_M, keys)
    full = full // BLOCK_N * BLOCK_N
    for start in tl.range(0, full, BLOCK_N):
        acc, largest, total = _tile(
            acc, largest, total, q, k, v, bias, m, start, tokens, keys, width, HEAD_DIM, FACTOR, CAUSAL, False, BLOCK_N
        )
    for start in tl.range(full, stop, BLOCK_TAIL, num_stages=1):
        acc, largest, total = _tile(
            acc, largest, total, q, k, v, bias, m, start, tokens, keys, width, HEAD_DIM, FACTOR, CAUSAL, True, BLOCK_TAIL
        )
    return acc, largest, total


@triton.jit
def _tile(
    acc, largest, total, q, k, v, bias, m, start, tokens, keys, width,
    HEAD_DIM: tl.constexpr, FACTOR: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of keys. The running maximum is kept in units of log2: p = exp2(score · FACTOR − largest)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    n = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    at = n[:, None] * width + d[None, :]
    if MASKED:
        there = (n[:, None] < keys) & (d[None, :] < HEAD_DIM)
        key = tl.load(k + at, there, other=0.0)
    elif BLOCK_D != HEAD_DIM:
        key = tl.load(k + at, d[None, :] < HEAD_DIM, other=0.0)
    else:
        key = tl.load(k + at)
    scores = tl.dot(q, tl.trans(key), input_precision="tf32x3") * FACTOR
    if bias is not None:
        # Rows beyond the last read the last: what they give is not stored.
        rows = bias + tl.minimum(m, tokens - 1).to(tl.int64) * keys
        if MASKED:
            scores += tl.load(rows[:, None] + n[None, :], n[None, :] < keys, other=0.0) * LOG2_E
        else:
            scores += tl.load(rows[:, None] + n[None, :]) * LOG2_E
    if MASKED:
        seen = n[None, :] < keys
        if CAUSAL:
            seen = seen & (n[None, :] <= m[:, None])
        scores = tl.where(seen, scores, float("-inf"))
    now = tl.maximum(largest, tl.max(scores, 1))
    p = tl.exp2(scores - now[:, None])
    fade = tl.exp2(largest - now)
    total = total * fade + tl.sum(p, 1)
    if MASKED:
        value = tl.load(v + at, there, other=0.0)
    elif BLOCK_D != HEAD_DIM:
        value = tl.load(v + at, d[None, :] < HEAD_DIM, other=0.0)
    else:
        value = tl.load(v + at)
    acc = tl.dot(p.to(value.dtype), value, acc * fade[:, None], input_precision="tf32x3")
    return acc, now, total
