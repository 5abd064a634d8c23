// FusedAttention on the tile unit (AMX). A factor is kept in bfloat16: as one piece where the op rounds it, as three
// whose sum is the float32 number where it does not; of their nine products the six that matter are added up.
//
// A tile is 16 rows of 64 bytes: of sums 16 × 16 floats, of a left factor 16 rows × 32 depths, of a right factor 16
// pairs of depths × 16 columns. Everything is kept tile by tile, 32 rows or columns by 32 depths at a time: a step.
#pragma once

#include "attention/operands.h"
#include "native/tiles.h"

#if defined(__AMX_TILE__)

namespace vitrify::VITRIFY_LEVEL {
namespace {

constexpr size_t kPair = 2 * kTileRows;  // Rows, columns and depths of a step.
constexpr size_t kSums = 4 * kTileSize;  // Words of 32 × 32 sums, as [row half][column half] tiles.

constexpr size_t kTaskRows = 96;    // Queries of a task
constexpr size_t kTileBlock = 256;  // and keys whose scores are there at a time.

// Words of a step of a factor, as [piece][half] tiles.
template <size_t pieces>
constexpr size_t kStep = 2 * pieces * kTileSize;

constexpr size_t steps_of(size_t size) {
  return (size + kPair - 1) / kPair;
}

// ---- Numbers as pieces

// What a piece leaves of a number; nothing of one that is not finite.
inline __m512 rest_of(__m512 value, __m512i piece) {
  const __m512 rest = _mm512_sub_ps(value, _mm512_castsi512_ps(piece));
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest);
}

// 32 numbers as pieces: each is what those before it leave, to the nearest bfloat16, of two the even one.
template <size_t pieces>
inline void split(__m512 low, __m512 high, __m512i (&to)[pieces]) {
#pragma GCC unroll 3
  for (size_t piece = 0; piece < pieces; ++piece) {
    to[piece] = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (piece + 1 == pieces) return;
    const __m512i of_low = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(to[piece])), 16);
    const __m512i of_high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(to[piece], 1)), 16);
    low = rest_of(low, of_low);
    high = rest_of(high, of_high);
  }
}

inline __mmask16 first_lanes(size_t count) {
  return count < kTileRows ? static_cast<__mmask16>((1U << count) - 1) : static_cast<__mmask16>(0xFFFF);
}

// Lanes at … at + 15 of a row of `count` floats, zeros behind its end.
inline __m512 load_upto(const float* row, size_t at, size_t count) {
  return at < count ? _mm512_maskz_loadu_ps(first_lanes(count - at), row + at) : _mm512_setzero_ps();
}

// to[16][16] = rows[16][16]ᵀ
inline void transpose_tile(const __m512i (&rows)[kTileRows], float* to) {
  __m512i pairs[kTileRows];
  __m512i quads[kTileRows];
#pragma GCC unroll 16
  for (size_t i = 0; i < kTileRows; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // quads[4 i + j] has in its quarter k the rows 4 i … 4 i + 3 of column 4 k + j.
#pragma GCC unroll 16
  for (size_t i = 0; i < kTileRows; i += 4) {
    quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x88);
    const __m512i low_odd = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xDD);
    const __m512i high_even = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x88);
    const __m512i high_odd = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xDD);
    _mm512_store_si512(to + j * kTileRows, _mm512_shuffle_i32x4(low_even, high_even, 0x88));
    _mm512_store_si512(to + (4 + j) * kTileRows, _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
    _mm512_store_si512(to + (8 + j) * kTileRows, _mm512_shuffle_i32x4(low_even, high_even, 0xDD));
    _mm512_store_si512(to + (12 + j) * kTileRows, _mm512_shuffle_i32x4(low_odd, high_odd, 0xDD));
  }
}

// ---- Products

// Tiles 0 … 3 are sums, 4 and 5 of the left factor, 6 and 7 of the right: the intrinsics take no other numbers.
template <bool both>
inline void load_left(const float* from) {
  _tile_loadd(4, from, 64);
  if constexpr (both) _tile_loadd(5, from + kTileSize, 64);
}

inline void load_right(const float* from) {
  _tile_loadd(6, from, 64);
  _tile_loadd(7, from + kTileSize, 64);
}

template <bool both>
inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (both) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// sums[32][32] = (add ? sums : 0) + left[32][32 · steps] · right[32 · steps][32], their upper 16 rows alone unless
// `both`. Small products first: they are added to small sums.
template <size_t pieces, bool both>
void multiply(const float* left, const float* right, size_t steps, bool add, float* sums) {
  constexpr size_t kPiece = 2 * kTileSize;
  tile_memory_fence();
  if (add) {
    _tile_loadd(0, sums, 64);
    _tile_loadd(1, sums + kTileSize, 64);
    if constexpr (both) {
      _tile_loadd(2, sums + 2 * kTileSize, 64);
      _tile_loadd(3, sums + 3 * kTileSize, 64);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  if constexpr (pieces == 3) {
    for (size_t step = 0; step < steps; ++step) {
      const float* const a = left + step * kStep<pieces>;
      const float* const b = right + step * kStep<pieces>;
      load_left<both>(a + 2 * kPiece);
      load_right(b);
      add_products<both>();
      load_left<both>(a + kPiece);
      add_products<both>();
      load_right(b + kPiece);
      add_products<both>();
      load_left<both>(a);
      add_products<both>();
      load_right(b + 2 * kPiece);
      add_products<both>();
    }
  }
  for (size_t step = 0; step < steps; ++step) {
    load_left<both>(left + step * kStep<pieces>);
    load_right(right + step * kStep<pieces>);
    add_products<both>();
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kTileSize, 64);
  if constexpr (both) {
    _tile_stored(2, sums + 2 * kTileSize, 64);
    _tile_stored(3, sums + 3 * kTileSize, 64);
  }
  tile_memory_fence();
}

// ---- Keys and values as right factors

// Keys of a step: [step of features][piece][half] tiles. row: scratch of head_dim floats.
template <size_t pieces>
void pack_keys(const AttentionHead& head, size_t first, size_t last, float* rows, float* to) {
  const size_t dim = head.head_dim;
  for (size_t half = 0; half < 2; ++half, first += kTileRows, to += kTileSize) {
    const size_t count = first < last ? smaller(kTileRows, last - first) : 0;
    for (size_t i = 0; i < count; ++i) {
      prepare_key(head, first + i, rows + i * dim);
    }
    for (size_t step = 0; step < steps_of(dim); ++step) {
      __m512i turned[pieces][kTileRows];
      for (size_t i = 0; i < kTileRows; ++i) {
        const float* const row = rows + i * dim;
        const size_t there = i < count ? dim : 0;
        __m512i found[pieces];
        split(load_upto(row, step * kPair, there), load_upto(row, step * kPair + kTileRows, there), found);
        for (size_t piece = 0; piece < pieces; ++piece) {
          turned[piece][i] = found[piece];
        }
      }
      for (size_t piece = 0; piece < pieces; ++piece) {
        transpose_tile(turned[piece], to + step * kStep<pieces> + piece * 2 * kTileSize);
      }
    }
  }
}

// Values of a step of keys, of all features: a panel of 32 of them is `stride` words from the next.
template <size_t pieces>
void pack_values(const AttentionHead& head, size_t first, size_t last, size_t stride, float* to) {
  // Numbers 0 … 15 and 16 … 31 alternate.
  alignas(64) static constexpr uint16_t kAlternate[kPair] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                             21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                             11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i alternate = _mm512_load_si512(kAlternate);
  const size_t dim = head.head_dim;
  for (size_t i = 0; i < kTileRows; ++i) {
    const size_t key = first + 2 * i;
    const Place even = key_at(head, smaller(key, last - 1));
    const Place odd = key_at(head, smaller(key + 1, last - 1));
    const float* const low = even.part.v + even.row;
    const float* const high = odd.part.v + odd.row;
    for (size_t ahead = key + kRowsAhead; ahead < key + kRowsAhead + 2 && ahead < head.keys; ++ahead) {
      const Place later = key_at(head, ahead);
      fetch_row(later.part.v + later.row, dim);
    }
    for (size_t column = 0; column < steps_of(dim) * kPair; column += kTileRows) {
      __m512i found[pieces];
      split(load_upto(low, column, key < last ? dim : 0), load_upto(high, column, key + 1 < last ? dim : 0), found);
      float* const tile = to + column / kPair * stride + column % kPair / kTileRows * kTileSize;
      for (size_t piece = 0; piece < pieces; ++piece) {
        _mm512_store_si512(tile + piece * 2 * kTileSize + i * kTileRows,
                           _mm512_permutexvar_epi16(alternate, found[piece]));
      }
    }
  }
}

// ---- The softmax

// 32 queries of a task: factors, unscaled output, and of each row the greatest score so far, rounded up to a whole
// number, how much smaller a greater one makes what is there, and the sum of the weights, lane by lane.
struct TileGroup {
  float* queries;  // [step of features][piece][half] tiles
  float* out;      // [panel of features] sums
  alignas(64) float maximum[kPair];
  alignas(64) float decay[kPair];
  __m512 sums[kPair];
};

template <typename Float>
inline Float* row_of(Float* sums, size_t row) {
  return sums + row / kTileRows * 2 * kTileSize + row % kTileRows * kTileRows;
}

// 2^x for x ≤ 0. 2^f of the fraction f is a polynomial with value 1 at 0, minimax in the relative error (found by Remez
// exchange): off by 2.9e-6 for one piece, which rounds the result to 2e-3, and by 2e-9 for three.
template <size_t pieces>
inline __m512 exp2_of_nonpositive_16(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const auto times_f_plus = [f](__m512 p, float c) { return _mm512_fmadd_ps(p, f, _mm512_set1_ps(c)); };
  __m512 p;
  if constexpr (pieces == 1) {
    p = times_f_plus(_mm512_set1_ps(1.3426684272e-02F), 5.2242474224e-02F);
    p = times_f_plus(p, 2.4128020475e-01F);
    p = times_f_plus(p, 6.9304484490e-01F);
  } else {
    p = times_f_plus(_mm512_set1_ps(2.1612914943e-04F), 1.2467846450e-03F);
    p = times_f_plus(p, 9.6754515665e-03F);
    p = times_f_plus(p, 5.5485280619e-02F);
    p = times_f_plus(p, 2.4022930555e-01F);
    p = times_f_plus(p, 6.9314704444e-01F);
  }
  return _mm512_scalef_ps(times_f_plus(p, 1.0F), x);
}

// Adds the bias to the scores of rows first … first + rows - 1 and keys from `block` on, and hides the keys that are
// not there or that a causal row may not see.
void hide(const AttentionHead& head, size_t first, size_t rows, size_t block, size_t count, float* scores) {
  const __m512 hidden = _mm512_set1_ps(kMinusInfinity);
  for (size_t row = 0; row < rows; ++row) {
    const size_t seen = keys_seen(head, first + row + 1);
    const size_t there = seen > block ? smaller(seen - block, count) : 0;
    for (size_t key = 0; key < steps_of(count) * kPair; key += kTileRows) {
      float* const at = row_of(scores + key / kPair * kSums, row) + key % kPair / kTileRows * kTileSize;
      const __mmask16 kept = key < there ? first_lanes(there - key) : static_cast<__mmask16>(0);
      __m512 score = _mm512_load_ps(at);
      if (head.bias != nullptr) {
        const float* const bias = head.bias + (first + row) * head.keys + block;
        score = _mm512_fmadd_ps(load_upto(bias, key, there), _mm512_set1_ps(kLog2E), score);
      }
      _mm512_store_ps(at, _mm512_mask_mov_ps(hidden, kept, score));
    }
  }
}

// Takes the scores of `steps` steps of keys into the maxima. Where weights are rounded a maximum is a whole number: a
// decay is then a power of two, and it makes no difference whether they are rounded before it or after it.
template <size_t pieces>
void raise_maxima(const float* scores, size_t steps, size_t rows, TileGroup& group) {
  alignas(64) float found[kPair] = {};
  for (size_t row = 0; row < rows; ++row) {
    const float* from = row_of(scores, row);
    __m512 low = _mm512_load_ps(from);
    __m512 high = _mm512_load_ps(from + kTileSize);
    for (size_t step = 1; step < steps; ++step) {
      from += kSums;
      low = _mm512_max_ps(low, _mm512_load_ps(from));
      high = _mm512_max_ps(high, _mm512_load_ps(from + kTileSize));
    }
    found[row] = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
  }
  for (size_t row = 0; row < rows; row += kTileRows) {
    const __m512 before = _mm512_load_ps(group.maximum + row);
    __m512 after = _mm512_load_ps(found + row);
    if (pieces == 1) after = _mm512_roundscale_ps(after, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
    after = _mm512_max_ps(before, after);
    const __mmask16 none = _mm512_cmp_ps_mask(after, _mm512_set1_ps(kMinusInfinity), _CMP_EQ_OQ);
    const __m512 safe = _mm512_mask_mov_ps(after, none, _mm512_setzero_ps());
    _mm512_store_ps(group.decay + row, exp2_of_nonpositive_16<pieces>(_mm512_sub_ps(before, safe)));
    _mm512_store_ps(group.maximum + row, after);
  }
}

// The scores of `steps` steps of keys as weights, a left factor: [step][piece][half] tiles.
template <size_t pieces>
void weigh(const float* scores, size_t steps, size_t rows, TileGroup& group, float* weights) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
  for (size_t row = 0; row < rows; ++row) {
    const float maximum = group.maximum[row];
    const __m512 safe = _mm512_set1_ps(maximum == kMinusInfinity ? 0.0F : maximum);
    __m512 sums[2] = {_mm512_mul_ps(group.sums[row], _mm512_set1_ps(group.decay[row])), _mm512_setzero_ps()};
    const float* from = row_of(scores, row);
    float* to = weights + row / kTileRows * kTileSize + row % kTileRows * kTileRows;
    for (size_t step = 0; step < steps; ++step, from += kSums, to += kStep<pieces>) {
      const __m512 low = exp2_of_nonpositive_16<pieces>(_mm512_sub_ps(_mm512_load_ps(from), safe));
      const __m512 high = exp2_of_nonpositive_16<pieces>(_mm512_sub_ps(_mm512_load_ps(from + kTileSize), safe));
      __m512i found[pieces];
      split(low, high, found);
#pragma GCC unroll 3
      for (size_t piece = 0; piece < pieces; ++piece) {
        _mm512_store_si512(to + piece * 2 * kTileSize, found[piece]);
      }
      if constexpr (pieces == 1) {  // What is multiplied is summed.
        sums[0] = _mm512_add_ps(sums[0], _mm512_castsi512_ps(_mm512_slli_epi32(found[0], 16)));
        sums[1] = _mm512_add_ps(sums[1], _mm512_castsi512_ps(_mm512_and_si512(found[0], upper)));
      } else {
        sums[0] = _mm512_add_ps(sums[0], low);
        sums[1] = _mm512_add_ps(sums[1], high);
      }
    }
    group.sums[row] = _mm512_add_ps(sums[0], sums[1]);
  }
}

// Multiplies the output that is there by the rows' decays; nothing to do where they are all 1.
void fade(const TileGroup& group, size_t rows, size_t panels) {
  for (size_t row = 0; row < rows; ++row) {
    if (group.decay[row] == 1.0F) continue;
    const __m512 decay = _mm512_set1_ps(group.decay[row]);
    for (size_t panel = 0; panel < panels; ++panel) {
      float* const at = row_of(group.out + panel * kSums, row);
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), decay));
      _mm512_store_ps(at + kTileSize, _mm512_mul_ps(_mm512_load_ps(at + kTileSize), decay));
    }
  }
}

// ---- A task

template <AttentionPrecision precision>
constexpr size_t kPieces = precision == AttentionPrecision::bfloat16 ? 1 : 3;

// Keys lie as [step of keys][step of features][piece][half] tiles, values as [panel of features][step of
// keys][piece][half].
template <AttentionPrecision precision>
AttentionShape shape_of(size_t keys, size_t head_dim) {
  constexpr size_t kWords = kStep<kPieces<precision>>;
  const size_t depth = steps_of(head_dim);
  const size_t packed = steps_of(keys) * depth * kWords;
  const size_t scratch =
      kTaskRows / kPair * depth * (kWords + kSums) + kTileBlock / kPair * (kSums + kWords) + kTileRows * head_dim;
  return {kTaskRows, packed, packed, scratch};
}

template <AttentionPrecision precision>
void pack(const AttentionHead& head, size_t first, size_t last, float* scratch) {
  constexpr size_t pieces = kPieces<precision>;
  const size_t depth = steps_of(head.head_dim);
  for (size_t key = first; key < last; key += kPair) {
    const size_t step = key / kPair;
    pack_keys<pieces>(head, key, last, scratch, head.packed_keys + step * depth * kStep<pieces>);
    pack_values<pieces>(head, key, last, steps_of(head.keys) * kStep<pieces>,
                        head.packed_values + step * kStep<pieces>);
  }
}

// 32 queries as a left factor, zeros where there are none.
template <size_t pieces>
void pack_queries(const AttentionHead& head, size_t first, size_t rows, float* row, float* to) {
  const size_t dim = head.head_dim;
  for (size_t i = 0; i < kPair; ++i) {
    if (i < rows) prepare_query(head, first + i, row);
    for (size_t step = 0; step < steps_of(dim); ++step) {
      const size_t there = i < rows ? dim : 0;
      __m512i found[pieces];
      split(load_upto(row, step * kPair, there), load_upto(row, step * kPair + kTileRows, there), found);
      for (size_t piece = 0; piece < pieces; ++piece) {
        _mm512_store_si512(
            to + step * kStep<pieces> + piece * 2 * kTileSize + i / kTileRows * kTileSize + i % kTileRows * kTileRows,
            found[piece]);
      }
    }
  }
}

// What 32 queries make of a block of keys.
template <size_t pieces, bool both>
void meet(const AttentionHead& head, TileGroup& group, size_t first, size_t rows, size_t block, size_t count,
          float* scores, float* weights) {
  const size_t depth = steps_of(head.head_dim);
  const size_t steps = steps_of(count);
  const float* const keys = head.packed_keys + block / kPair * depth * kStep<pieces>;
  for (size_t step = 0; step < steps; ++step) {
    multiply<pieces, both>(group.queries, keys + step * depth * kStep<pieces>, depth, false, scores + step * kSums);
  }
  const bool whole = head.bias == nullptr && count % kPair == 0 && (!head.causal || block + count <= first + 1);
  if (!whole) hide(head, first, rows, block, count, scores);
  raise_maxima<pieces>(scores, steps, rows, group);
  weigh<pieces>(scores, steps, rows, group, weights);
  if (block > 0) fade(group, rows, depth);
  const size_t stride = steps_of(head.keys) * kStep<pieces>;
  const float* const values = head.packed_values + block / kPair * kStep<pieces>;
  for (size_t panel = 0; panel < depth; ++panel) {
    multiply<pieces, both>(weights, values + panel * stride, steps, block > 0, group.out + panel * kSums);
  }
}

template <AttentionPrecision precision>
void compute_rows(const AttentionHead& head, size_t first, float* scratch) {
  constexpr size_t pieces = kPieces<precision>;
  const TileRegisters registers;
  const size_t dim = head.head_dim;
  const size_t steps = steps_of(dim);
  const size_t rows = smaller(kTaskRows, head.tokens - first);
  const size_t groups = steps_of(rows);
  float* const scores = scratch;
  float* const weights = scores + kTileBlock / kPair * kSums;
  float* const row = weights + kTileBlock / kPair * kStep<pieces>;
  float* const kept = row + rounded_to(dim, 16);

  TileGroup all_groups[kTaskRows / kPair];
  for (size_t i = 0; i < groups; ++i) {
    TileGroup& group = all_groups[i];
    group.queries = kept + i * steps * (kStep<pieces> + kSums);
    group.out = group.queries + steps * kStep<pieces>;
    pack_queries<pieces>(head, first + i * kPair, smaller(kPair, rows - i * kPair), row, group.queries);
    for (size_t j = 0; j < kPair; ++j) {
      group.maximum[j] = kMinusInfinity;
      group.sums[j] = _mm512_setzero_ps();
    }
  }
  const size_t end = keys_seen(head, first + rows);
  for (size_t block = 0; block < end; block += kTileBlock) {
    for (size_t i = 0; i < groups; ++i) {
      const size_t start = first + i * kPair;
      const size_t its_rows = smaller(kPair, first + rows - start);
      const size_t its_end = keys_seen(head, start + its_rows);
      if (block >= its_end) continue;
      const auto with = its_rows > kTileRows ? &meet<pieces, true> : &meet<pieces, false>;
      with(head, all_groups[i], start, its_rows, block, smaller(kTileBlock, its_end - block), scores, weights);
    }
  }
  for (size_t i = 0; i < rows; ++i) {
    const TileGroup& group = all_groups[i / kPair];
    const Place at = token_at(head, first + i);
    float* const to = at.part.out + at.row;
    const __m512 inverse = _mm512_set1_ps(1.0F / _mm512_reduce_add_ps(group.sums[i % kPair]));
    for (size_t column = 0; column < dim; column += kTileRows) {
      const float* const from =
          row_of(group.out + column / kPair * kSums, i % kPair) + column % kPair / kTileRows * kTileSize;
      _mm512_mask_storeu_ps(to + column, first_lanes(dim - column), _mm512_mul_ps(_mm512_load_ps(from), inverse));
    }
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
