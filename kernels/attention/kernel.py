"""FusedAttention in Triton: one pass over the keys with a running maximum and sum (flash attention).

What it does for speed: exp2 with the scale folded into its argument, full tiles of keys without a mask and masked ones apart,
loads of keys and values in flight (num_stages). Queries and keys that are normalised and turned are so by qk_norm_rope before,
each once: a tile of queries has no registers to spare, and two blocks of them on one multiprocessor hide each other's softmax.
"""

# Triton reads this source; to a type checker it is pseudo-code.
# mypy: ignore-errors

import triton
import triton.language as tl

__all__ = ["attention"]


@triton.jit
def attention(
    q,
    k,
    v_0,
    v_1,
    bias,
    tokens_0,
    tokens_1,
    keys,
    width,
    out_0,
    out_1,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
):
    """out = softmax(SCALE · q kᵀ + bias) v of one tile of BLOCK_M queries of one head of one row.

    q: [batch, all tokens, width], k: [batch, all keys, width], v_0: [batch, keys, width], out_0: [batch, tokens_0, width].
    Two parts: v_0 and out_0 are [batch, tokens_0, width], v_1 and out_1 [batch, tokens_1, width], keys is None; else those of
    part 1 are None. bias: [heads, tokens_0, keys] float32 or None. SCALE: None where q is times scale · log2(e) already.
    Grid: (tiles of part 0 + tiles of part 1, heads, batch).
    """
    LOG2_E: tl.constexpr = 1.4426950408889634
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    row = tl.program_id(2).to(tl.int64)
    at_head = tl.program_id(1) * HEAD_DIM
    tile = tl.program_id(0)

    out, tokens, before, all_tokens = out_0, tokens_0, 0, tokens_0
    if v_1 is not None:
        all_tokens = tokens_0 + tokens_1
        keys = all_tokens
        tiles_0 = tl.cdiv(tokens_0, BLOCK_M)
        if tile >= tiles_0:
            out, tokens, before = out_1, tokens_1, tokens_0
            tile -= tiles_0

    first = tile * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    # From the tile's first query on, whose address is one for the block: offsets of elements then fit 32 bits.
    at = tl.arange(0, BLOCK_M)[:, None] * width + d[None, :]
    inside = tl.arange(0, BLOCK_M)[:, None] < tokens - first
    if BLOCK_D != HEAD_DIM:
        inside = inside & (d[None, :] < HEAD_DIM)
    x = tl.load(q + (row * all_tokens + before + first) * width + at_head + at, inside, other=0.0)
    dtype: tl.constexpr = x.dtype
    FACTOR: tl.constexpr = 1.0 if SCALE is None else SCALE * LOG2_E

    head_bias = bias
    if bias is not None:
        head_bias = bias + tl.program_id(1).to(tl.int64) * tokens_0 * keys
    k += row * keys * width + at_head
    if v_1 is None:
        v_0 += row * keys * width + at_head
        acc, total = _attend(
            x, k, v_0, None, head_bias, m, first, tokens, keys, 0, width,
            HEAD_DIM, FACTOR, CAUSAL, BLOCK_M, BLOCK_N, BLOCK_TAIL,
        )  # fmt: skip
    else:
        v_0 += row * tokens_0 * width + at_head
        v_1 += row * tokens_1 * width + at_head
        acc, total = _attend(
            x, k, v_0, v_1, head_bias, m, first, tokens, tokens_0, tokens_1, width,
            HEAD_DIM, FACTOR, CAUSAL, BLOCK_M, BLOCK_N, BLOCK_TAIL,
        )  # fmt: skip
    tl.store(out + (row * tokens + first) * width + at_head + at, (acc * (1.0 / total)[:, None]).to(dtype), inside)


@triton.jit
def _attend(
    q, k, v_0, v_1, bias, m, first, tokens, keys_0, keys_1, width,
    HEAD_DIM: tl.constexpr, FACTOR: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TAIL: tl.constexpr,
):  # fmt: skip
    """Σ p · v and Σ p over the keys of both parts: all full tiles first; then what is left of each part, or the diagonal, in
    smaller ones with a mask. k: keys of part 0, those of part 1 after them; v_0, v_1: the parts' values."""
    acc = tl.zeros((BLOCK_M, tl.constexpr(triton.next_power_of_2(HEAD_DIM))), tl.float32)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    stop = keys_0
    full_0 = keys_0
    if CAUSAL:
        full_0 = tl.minimum(first, keys_0)
        stop = tl.minimum(first + BLOCK_M, keys_0)
    full_0 = full_0 // BLOCK_N
    tail_0 = tl.cdiv(stop - full_0 * BLOCK_N, BLOCK_TAIL)
    full_1 = keys_1 // BLOCK_N
    tail_1 = tl.cdiv(keys_1 - full_1 * BLOCK_N, BLOCK_TAIL)
    for tile in tl.range(0, full_0 + full_1):
        start, at, v, keys = _place(tile, full_0, 0, 0, BLOCK_N, keys_0, keys_1, v_0, v_1)
        acc, largest, total = _tile(
            acc, largest, total, q, k + at * width, v + tl.cast(start, tl.int64) * width, bias, m, start, tokens, keys, width,
            HEAD_DIM, FACTOR, CAUSAL, False, BLOCK_N,
        )  # fmt: skip
    for tile in tl.range(0, tail_0 + tail_1, num_stages=1):
        start, at, v, keys = _place(tile, tail_0, full_0 * BLOCK_N, full_1 * BLOCK_N, BLOCK_TAIL, keys_0, keys_1, v_0, v_1)
        acc, largest, total = _tile(
            acc, largest, total, q, k + at * width, v + tl.cast(start, tl.int64) * width, bias, m, start, tokens, keys, width,
            HEAD_DIM, FACTOR, CAUSAL, True, BLOCK_TAIL,
        )  # fmt: skip
    return acc, total


@triton.jit
def _place(tile, tiles_0, from_0, from_1, BLOCK: tl.constexpr, keys_0, keys_1, v_0, v_1):
    """Where a tile lies: (its first key within its part, the same within all keys, the part's values, the part's keys). The
    first tiles_0 tiles lie in part 0, from from_0 on, the others in part 1, from from_1 on."""
    start, before, v, keys = from_0 + tile * BLOCK, 0, v_0, keys_0
    if v_1 is not None:
        here = tile >= tiles_0
        start = tl.where(here, from_1 + (tile - tiles_0) * BLOCK, start)
        before = tl.where(here, keys_0, 0)
        v = tl.where(here, v_1, v_0)
        keys = tl.where(here, keys_1, keys_0)
    return start, tl.cast(start, tl.int64) + before, v, keys


@triton.jit
def _tile(
    acc, largest, total, q, k, v, bias, m, start, tokens, keys, width,
    HEAD_DIM: tl.constexpr, FACTOR: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of keys; k and v point to its first. The running maximum is kept in units of log2:
    p = exp2(score · FACTOR − largest)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    BLOCK_D: tl.constexpr = triton.next_power_of_2(HEAD_DIM)
    n = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    at = tl.arange(0, BLOCK_N)[:, None] * width + d[None, :]
    if MASKED:
        there = n[:, None] < keys
        if BLOCK_D != HEAD_DIM:
            there = there & (d[None, :] < HEAD_DIM)
        key = tl.load(k + at, there, other=0.0)
    elif BLOCK_D != HEAD_DIM:
        key = tl.load(k + at, d[None, :] < HEAD_DIM, other=0.0)
    else:
        key = tl.load(k + at)
    scores = tl.dot(q, tl.trans(key), input_precision="tf32x3")
    if FACTOR != 1.0:
        scores *= FACTOR
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
