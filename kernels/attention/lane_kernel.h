// FusedAttention on vector registers of floats, at any level. Where the op rounds its factors to bfloat16 they are
// rounded and multiplied as floats.
#pragma once

#include "attention/operands.h"
#include "native/bfloat16.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Both products are made of tiles, kTile rows by the two registers of a panel: 24 accumulators of the 32 registers that
// AVX-512 has, 12 of 16. In the first the rows are keys and the columns queries, in the second queries and features.
constexpr size_t kPanel = 2 * kLanes;
constexpr size_t kTile = kLanes == 16 ? 12 : 6;
constexpr size_t kRows = 96;    // Queries of a task
constexpr size_t kBlock = 192;  // and keys whose scores are there at a time.

static_assert(kRows % kTile == 0 && kRows % kPanel == 0 && kBlock % kTile == 0, "whole tiles");

// to[column][kPanel] = from[kPanel][columns]ᵀ
void transpose(const float* from, size_t columns, float* to) {
  for (size_t column = 0; column < columns; ++column) {
    for (size_t i = 0; i < kPanel; ++i) {
      to[column * kPanel + i] = from[i * columns + column];
    }
  }
}

template <AttentionPrecision precision>
inline void round_factor(float* values, size_t count) {
  if constexpr (precision == AttentionPrecision::bfloat16) round_bf16(values, count);
}

// Queries of the task, panel by panel as [head_dim][kPanel]; those beyond the last are zero. panel: scratch of kPanel
// rows.
template <AttentionPrecision precision>
void pack_queries(const AttentionHead& head, size_t first, size_t rows, float* panel, float* packed) {
  const size_t dim = head.head_dim;
  for (size_t start = 0; start < rows; start += kPanel) {
    for (size_t i = 0; i < kPanel; ++i) {
      float* const row = panel + i * dim;
      const size_t token = first + start + i;
      if (start + i < rows) {
        prepare_query(head, token, row);
        round_factor<precision>(row, dim);
      } else {
        for (size_t d = 0; d < dim; ++d) {
          row[d] = 0;
        }
      }
    }
    transpose(panel, dim, packed + start * dim);
  }
}

// The state of a chunk between two blocks: of each row the maximum so far, how much smaller the new one makes what is
// there, and the sum of the weights.
struct Softmax {
  Lanes maximum[kRows / kLanes];
  Lanes decay[kRows / kLanes];
  Lanes sum[kRows / kLanes];
};

// scores[kTile][kRows] = keys[kTile][depth] · queries[depth][kPanel]; takes their maximum over the keys into `maximum`.
void score_tile(const float* keys, const float* queries, size_t depth, float* scores, Lanes* maximum) {
  Lanes sums[kTile][2] = {};
  for (size_t d = 0; d < depth; ++d, ++keys, queries += kPanel) {
    const Lanes low = load(queries);
    const Lanes high = load(queries + kLanes);
#pragma GCC unroll 16
    for (size_t i = 0; i < kTile; ++i) {
      const Lanes key = all(keys[i * depth]);
      sums[i][0] += key * low;
      sums[i][1] += key * high;
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; ++i) {
    store(scores + i * kRows, sums[i][0]);
    store(scores + i * kRows + kLanes, sums[i][1]);
    maximum[0] = larger(maximum[0], sums[i][0]);
    maximum[1] = larger(maximum[1], sums[i][1]);
  }
}

// out[kTile][kPanel] = decay[kTile] · out + weights[count][kTile]ᵀ · values[count][kPanel]; without out if `fresh`.
void value_tile(const float* weights, const float* values, size_t count, bool fresh, const float* decay, float* out) {
  Lanes sums[kTile][2] = {};
  for (size_t k = 0; k < count; ++k, weights += kRows, values += kPanel) {
    const Lanes low = load(values);
    const Lanes high = load(values + kLanes);
#pragma GCC unroll 16
    for (size_t i = 0; i < kTile; ++i) {
      const Lanes weight = all(weights[i]);
      sums[i][0] += weight * low;
      sums[i][1] += weight * high;
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; ++i) {
    for (size_t side = 0; side < 2; ++side) {
      float* const to = out + i * kPanel + side * kLanes;
      store(to, fresh ? sums[i][side] : load(to) * decay[i] + sums[i][side]);
    }
  }
}

// Adds the bias to scores[count][kRows] of the keys from `block` on, and hides those that a causal row may not see.
void mask(const AttentionHead& head, size_t first, size_t rows, size_t block, size_t count, float* scores) {
  if (head.bias != nullptr) {
    const float* bias = head.bias + first * head.keys + block;
    for (size_t k = 0; k < count; ++k) {  // A key at a time: gathered reads cost less than scattered writes.
      for (size_t row = 0; row < rows; ++row) {
        scores[k * kRows + row] += bias[row * head.keys + k] * kLog2E;
      }
    }
  }
  if (head.causal) {
    for (size_t k = 0; k < count; ++k) {
      const size_t hidden = block + k > first ? smaller(block + k - first, rows) : 0;
      for (size_t row = 0; row < hidden; ++row) {
        scores[k * kRows + row] = kMinusInfinity;
      }
    }
  }
}

// To the next whole number. Numbers from 2^22 on may stay as they are.
inline Lanes round_up(Lanes value) {
  constexpr float kWhole = 12582912.0F;  // 1.5 · 2^23, near which a float has no bits below 1.
  const Lanes nearest = value + kWhole - kWhole;
  const Lanes whole = nearest < value ? nearest + 1.0F : nearest;
  return (value < 0.0F ? -value : value) < 4194304.0F ? whole : value;
}

// Turns scores[count][…] of two registers of rows into weights 2^(score - maximum).
template <AttentionPrecision precision>
void weigh(Softmax& softmax, size_t at, float* scores, size_t count) {
  Lanes safe[2];
  Lanes sums[2] = {};
  for (size_t side = 0; side < 2; ++side) {
    const Lanes maximum = softmax.maximum[at + side];
    safe[side] = maximum == kMinusInfinity ? Lanes{} : maximum;
  }
  for (size_t k = 0; k < count; ++k, scores += kRows) {
    for (size_t side = 0; side < 2; ++side) {
      Lanes weight = exp2_of_nonpositive(load(scores + side * kLanes) - safe[side]);
      if (precision == AttentionPrecision::bfloat16) weight = round_bf16(weight);
      store(scores + side * kLanes, weight);
      sums[side] += weight;
    }
  }
  for (size_t side = 0; side < 2; ++side) {
    softmax.sum[at + side] = softmax.sum[at + side] * softmax.decay[at + side] + sums[side];
  }
}

// Scores of a block of keys, turned into weights[count][kRows]. Where weights are rounded a maximum is a whole number:
// a decay is then a power of two, and it makes no difference whether they are rounded before it or after it.
template <AttentionPrecision precision>
void weigh_block(const AttentionHead& head, const float* queries, size_t first, size_t rows, size_t block, size_t count,
                 float* scores, Softmax& softmax) {
  const bool whole = head.bias == nullptr && (!head.causal || block + count <= first + 1);
  const size_t dim = head.head_dim;
  for (size_t panel = 0; panel < rows; panel += kPanel) {
    const size_t at = panel / kLanes;
    float* const columns = scores + panel;
    Lanes maximum[2] = {softmax.maximum[at], softmax.maximum[at + 1]};
    Lanes found[2] = {maximum[0], maximum[1]};
    for (size_t tile = 0; tile < count; tile += kTile) {
      score_tile(head.packed_keys + (block + tile) * dim, queries + panel * dim, dim, columns + tile * kRows, found);
    }
    if (!whole) {
      mask(head, first + panel, smaller(kPanel, rows - panel), block, count, columns);
      for (size_t side = 0; side < 2; ++side) {
        found[side] = maximum[side];
        for (size_t k = 0; k < count; ++k) {
          found[side] = larger(found[side], load(columns + k * kRows + side * kLanes));
        }
      }
    }
    for (size_t side = 0; side < 2; ++side) {
      if (precision == AttentionPrecision::bfloat16) found[side] = round_up(found[side]);
      const Lanes safe = found[side] == kMinusInfinity ? Lanes{} : found[side];
      softmax.decay[at + side] = exp2_of_nonpositive(maximum[side] - safe);
      softmax.maximum[at + side] = found[side];
    }
    weigh<precision>(softmax, at, columns, count);
  }
}

// Keys lie as [keys][head_dim], the last one repeated until the tiles are full; values in panels of columns.
template <AttentionPrecision>
AttentionShape shape_of(size_t keys, size_t head_dim) {
  const size_t padded = rounded_to(head_dim, 32);
  return {kRows, rounded_to((keys + kTile - 1) * head_dim, 16), keys * padded,
          kRows * (head_dim + padded + kBlock) + kPanel * head_dim};
}

template <AttentionPrecision precision>
void pack(const AttentionHead& head, size_t first, size_t last, float*) {
  const size_t dim = head.head_dim;
  for (size_t key = first; key < last; ++key) {
    float* const packed = head.packed_keys + key * dim;
    prepare_key(head, key, packed);
    round_factor<precision>(packed, dim);
    const Place at = key_at(head, key);
    const float* from = at.part.v + at.row;
    for (size_t column = 0; column < dim; column += kPanel) {
      const size_t columns = smaller(kPanel, dim - column);
      float* to = head.packed_values + column * head.keys + key * kPanel;
      for (size_t i = 0; i < columns; ++i) {
        to[i] = from[column + i];
      }
      for (size_t i = columns; i < kPanel; ++i) {
        to[i] = 0;
      }
      round_factor<precision>(to, columns);
    }
  }
  // A key more changes no maximum if it is one that is there.
  for (size_t i = last * dim; last == head.keys && i < (last + kTile - 1) / kTile * kTile * dim; ++i) {
    head.packed_keys[i] = head.packed_keys[i - dim];
  }
}

template <AttentionPrecision precision>
void compute_rows(const AttentionHead& head, size_t first, float* scratch) {
  const size_t dim = head.head_dim;
  const size_t rows = smaller(kRows, head.tokens - first);
  float* const scores = scratch;
  float* const out = scores + kRows * kBlock;
  float* const queries = out + kRows * rounded_to(dim, 32);
  pack_queries<precision>(head, first, rows, queries + kRows * dim, queries);

  Softmax softmax;
  for (size_t i = 0; i < kRows / kLanes; ++i) {
    softmax.maximum[i] = all(kMinusInfinity);
    softmax.decay[i] = Lanes{};
    softmax.sum[i] = Lanes{};
  }
  const size_t end = head.causal ? smaller(head.keys, first + rows) : head.keys;
  for (size_t block = 0; block < end; block += kBlock) {
    const size_t count = smaller(kBlock, end - block);
    weigh_block<precision>(head, queries, first, rows, block, count, scores, softmax);
    float decay[kRows];
    for (size_t i = 0; i < kRows / kLanes; ++i) {
      store(decay + i * kLanes, softmax.decay[i]);
    }
    for (size_t column = 0; column < dim; column += kPanel) {
      const float* values = head.packed_values + column * head.keys + block * kPanel;
      for (size_t tile = 0; tile < rows; tile += kTile) {
        value_tile(scores + tile, values, count, block == 0, decay + tile, out + column * kRows + tile * kPanel);
      }
    }
  }

  for (size_t row = 0; row < rows; ++row) {
    const Place at = token_at(head, first + row);
    float* to = at.part.out + at.row;
    const float inverse = 1.0F / softmax.sum[row / kLanes][row % kLanes];
    for (size_t column = 0; column < dim; column += kPanel) {
      const float* from = out + column * kRows + row * kPanel;
      const size_t columns = smaller(kPanel, dim - column);
      for (size_t i = 0; i < columns; ++i) {
        to[column + i] = from[i] * inverse;
      }
    }
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
