// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
//
// Flash-attention for a cache hierarchy: a chunk of queries meets the keys block by block; the block's scores, the
// running maximum and sum of each row and the unscaled output never leave the second-level cache (README.md).
#include "attention/cpu.h"

#include "native/lanes.h"
#include "qk_norm_rope/row.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Both products are made of tiles, kTile rows by the two registers of a panel: 24 accumulators of the 32 registers that
// AVX-512 has, 12 of 16. In the first the rows are keys and the columns queries, in the second queries and features.
constexpr size_t kPanel = 2 * kLanes;
constexpr size_t kTile = kLanes == 16 ? 12 : 6;
constexpr size_t kRows = kAttentionRows;
constexpr size_t kBlock = kAttentionBlock;

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kMinusInfinity = -__builtin_inff();

static_assert(kRows % kTile == 0 && kRows % kPanel == 0 && kBlock % kTile == 0, "whole tiles");

inline size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

// Where a token of one of the parts lies.
struct Place {
  const AttentionPart& part;
  size_t row;
};

inline Place token_at(const AttentionHead& head, size_t token) {
  const bool second = token >= head.parts[0].tokens;
  return {head.parts[second], (second ? token - head.parts[0].tokens : token) * head.width};
}

inline Place key_at(const AttentionHead& head, size_t key) {
  const bool second = key >= head.parts[0].keys;
  return {head.parts[second], (second ? key - head.parts[0].keys : key) * head.width};
}

// One query or key as the product needs it: factor · x, normalised and turned where the head says so.
inline void prepare(const AttentionHead& head, const float* x, const float* norm, size_t token, float factor,
                    float* y) {
  const size_t half = head.head_dim / 2;
  if (norm != nullptr) {
    norm_rope_row(x, norm, head.cos + token * half, head.sin + token * half, half, head.epsilon, factor, y);
    return;
  }
  for (size_t i = 0; i < head.head_dim; ++i) {
    y[i] = x[i] * factor;
  }
}

// to[column][kPanel] = from[kPanel][columns]ᵀ
void transpose(const float* from, size_t columns, float* to) {
  for (size_t column = 0; column < columns; ++column) {
    for (size_t i = 0; i < kPanel; ++i) {
      to[column * kPanel + i] = from[i * columns + column];
    }
  }
}

// Queries of the chunk, panel by panel as [head_dim][kPanel], times scale · log2(e): the softmax is one of powers of
// two. Queries beyond the last are zero. panel: scratch of kPanel rows.
void pack_queries(const AttentionHead& head, size_t first, size_t rows, float* panel, float* packed) {
  const size_t dim = head.head_dim;
  for (size_t start = 0; start < rows; start += kPanel) {
    for (size_t i = 0; i < kPanel; ++i) {
      float* const row = panel + i * dim;
      const size_t token = first + start + i;
      if (start + i < rows) {
        const Place at = token_at(head, token);
        prepare(head, at.part.q + at.row, at.part.q_norm, token, head.scale * kLog2E, row);
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

// Turns scores[count][…] of two registers of rows into weights 2^(score - maximum).
void weigh(Softmax& softmax, size_t at, float* scores, size_t count) {
  Lanes safe[2];
  Lanes sums[2] = {};
  for (size_t side = 0; side < 2; ++side) {
    const Lanes maximum = softmax.maximum[at + side];
    safe[side] = maximum == kMinusInfinity ? Lanes{} : maximum;
  }
  for (size_t k = 0; k < count; ++k, scores += kRows) {
    for (size_t side = 0; side < 2; ++side) {
      const Lanes weight = exp2_of_nonpositive(load(scores + side * kLanes) - safe[side]);
      store(scores + side * kLanes, weight);
      sums[side] += weight;
    }
  }
  for (size_t side = 0; side < 2; ++side) {
    softmax.sum[at + side] = softmax.sum[at + side] * softmax.decay[at + side] + sums[side];
  }
}

// Scores of a block of keys, turned into weights[count][kRows].
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
      const Lanes safe = found[side] == kMinusInfinity ? Lanes{} : found[side];
      softmax.decay[at + side] = exp2_of_nonpositive(maximum[side] - safe);
      softmax.maximum[at + side] = found[side];
    }
    weigh(softmax, at, columns, count);
  }
}

}  // namespace

void attention_pack(const AttentionHead& head, size_t first, size_t last, float*) {
  const size_t dim = head.head_dim;
  for (size_t key = first; key < last; ++key) {
    const Place at = key_at(head, key);
    prepare(head, at.part.k + at.row, at.part.k_norm, key, 1.0F, head.packed_keys + key * dim);
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
    }
  }
  // A key more changes no maximum if it is one that is there.
  for (size_t i = last * dim; last == head.keys && i < (last + kTile - 1) / kTile * kTile * dim; ++i) {
    head.packed_keys[i] = head.packed_keys[i - dim];
  }
}

void attention_rows(const AttentionHead& head, size_t first, float* scratch) {
  const size_t dim = head.head_dim;
  const size_t rows = smaller(kRows, head.tokens - first);
  float* const scores = scratch;
  float* const out = scores + kRows * kBlock;
  float* const queries = out + kRows * attention_rounded(dim, 32);
  pack_queries(head, first, rows, queries + kRows * dim, queries);

  Softmax softmax;
  for (size_t i = 0; i < kRows / kLanes; ++i) {
    softmax.maximum[i] = all(kMinusInfinity);
    softmax.decay[i] = Lanes{};
    softmax.sum[i] = Lanes{};
  }
  const size_t end = head.causal ? smaller(head.keys, first + rows) : head.keys;
  for (size_t block = 0; block < end; block += kBlock) {
    const size_t count = smaller(kBlock, end - block);
    weigh_block(head, queries, first, rows, block, count, scores, softmax);
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

}  // namespace vitrify::VITRIFY_LEVEL
