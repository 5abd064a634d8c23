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

// A micro-kernel's tile: kTile rows by kPanel columns, one accumulator register for each row and half a panel.
constexpr size_t kPanel = 2 * kLanes;
constexpr size_t kTile = kLanes == 16 ? 12 : 6;
// Keys of a block: its scores lie in rows of this length, its values' panel fits the first-level cache.
constexpr size_t kBlock = 192;

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kMinusInfinity = -__builtin_inff();

static_assert(kAttentionRows % kTile == 0 && kBlock % kPanel == 0 && kAttentionSlice % kPanel == 0, "whole tiles");

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

// Queries of the chunk, tile by tile as [head_dim][kTile], times scale · log2(e): the softmax is one of powers of two.
void pack_queries(const AttentionHead& head, size_t first, size_t rows, float* row, float* packed) {
  for (size_t tile = 0; tile < rows; tile += kTile) {
    for (size_t i = 0; i < kTile; ++i) {
      float* to = packed + tile * head.head_dim + i;
      if (tile + i >= rows) {
        for (size_t d = 0; d < head.head_dim; ++d) {
          to[d * kTile] = 0;
        }
        continue;
      }
      const Place at = token_at(head, first + tile + i);
      prepare(head, at.part.q + at.row, at.part.q_norm, first + tile + i, head.scale * kLog2E, row);
      for (size_t d = 0; d < head.head_dim; ++d) {
        to[d * kTile] = row[d];
      }
    }
  }
}

// scores[rows][kPanel] = queries[depth][kTile]ᵀ · keys[depth][kPanel]
void score_tile(const float* queries, const float* keys, size_t depth, float* scores) {
  Lanes sums[kTile][2] = {};
  for (size_t d = 0; d < depth; ++d, queries += kTile, keys += kPanel) {
    const Lanes low = load(keys);
    const Lanes high = load(keys + kLanes);
#pragma GCC unroll 16
    for (size_t i = 0; i < kTile; ++i) {
      const Lanes query = all(queries[i]);
      sums[i][0] += query * low;
      sums[i][1] += query * high;
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; ++i) {
    store(scores + i * kBlock, sums[i][0]);
    store(scores + i * kBlock + kLanes, sums[i][1]);
  }
}

// out[rows][kPanel] = decay[rows] · out + weights[rows][count] · values[count][kPanel]
void value_tile(const float* weights, const float* values, size_t count, const float* decay, float* out) {
  Lanes sums[kTile][2];
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; ++i) {
    sums[i][0] = load(out + i * kPanel) * decay[i];
    sums[i][1] = load(out + i * kPanel + kLanes) * decay[i];
  }
  for (size_t k = 0; k < count; ++k, ++weights, values += kPanel) {
    const Lanes low = load(values);
    const Lanes high = load(values + kLanes);
#pragma GCC unroll 16
    for (size_t i = 0; i < kTile; ++i) {
      const Lanes weight = all(weights[i * kBlock]);
      sums[i][0] += weight * low;
      sums[i][1] += weight * high;
    }
  }
#pragma GCC unroll 16
  for (size_t i = 0; i < kTile; ++i) {
    store(out + i * kPanel, sums[i][0]);
    store(out + i * kPanel + kLanes, sums[i][1]);
  }
}

// The running softmax of a chunk: for every row the maximum so far, and the sum of its weights, lane by lane.
struct Softmax {
  float maximum[kAttentionRows];
  float decay[kAttentionRows];
  Lanes sum[kAttentionRows];
};

// Turns a row of scores into weights 2^(score - maximum). The lanes from `valid` up to whole registers become 0.
inline void weigh(Softmax& softmax, size_t row, float* scores, size_t count) {
  const float maximum = softmax.maximum[row] == kMinusInfinity ? 0.0F : softmax.maximum[row];
  Lanes total = softmax.sum[row] * softmax.decay[row];
  for (size_t k = 0; k < count; k += kLanes) {
    const Lanes weight = exp2_of_nonpositive(load(scores + k) - maximum);
    store(scores + k, weight);
    total += weight;
  }
  softmax.sum[row] = total;
}

inline float row_maximum(const float* scores, size_t count, float known) {
  Lanes maximum = all(known);
  for (size_t k = 0; k < count; k += kLanes) {
    maximum = larger(maximum, load(scores + k));
  }
  for (int i = 0; i < kLanes; ++i) {
    known = known > maximum[i] ? known : maximum[i];
  }
  return known;
}

}  // namespace

void attention_pack(const AttentionHead& head, size_t first, size_t last, float* scratch) {
  const size_t dim = head.head_dim;
  for (size_t panel = first; panel < last; panel += kPanel) {
    float* packed = head.packed_keys + panel * dim;
    for (size_t i = 0; i < kPanel; ++i) {
      float* row = scratch + i * dim;
      if (panel + i < last) {
        const Place at = key_at(head, panel + i);
        prepare(head, at.part.k + at.row, at.part.k_norm, panel + i, 1.0F, row);
      } else {
        for (size_t d = 0; d < dim; ++d) {
          row[d] = 0;
        }
      }
    }
    for (size_t d = 0; d < dim; ++d) {
      for (size_t i = 0; i < kPanel; ++i) {
        packed[d * kPanel + i] = scratch[i * dim + d];
      }
    }
  }
  for (size_t column = 0; column < dim; column += kPanel) {
    const size_t columns = smaller(kPanel, dim - column);
    for (size_t key = first; key < last; ++key) {
      const Place at = key_at(head, key);
      const float* from = at.part.v + at.row + column;
      float* to = head.packed_values + column * head.keys + key * kPanel;
      for (size_t i = 0; i < columns; ++i) {
        to[i] = from[i];
      }
      for (size_t i = columns; i < kPanel; ++i) {
        to[i] = 0;
      }
    }
  }
}

void attention_rows(const AttentionHead& head, size_t first, float* scratch) {
  const size_t dim = head.head_dim;
  const size_t rows = smaller(kAttentionRows, head.tokens - first);
  float* const queries = scratch;
  float* const scores = queries + kAttentionRows * dim;
  float* const out = scores + kAttentionRows * kBlock;
  pack_queries(head, first, rows, scores, queries);

  Softmax softmax;
  for (size_t row = 0; row < kAttentionRows; ++row) {
    softmax.maximum[row] = kMinusInfinity;
    softmax.sum[row] = Lanes{};
  }
  const size_t out_size = kAttentionRows * attention_rounded(dim);
  for (size_t i = 0; i < out_size; ++i) {
    out[i] = 0;
  }

  const size_t end = head.causal ? smaller(head.keys, first + rows) : head.keys;
  for (size_t block = 0; block < end; block += kBlock) {
    const size_t count = smaller(kBlock, end - block);
    for (size_t panel = 0; panel < count; panel += kPanel) {
      for (size_t tile = 0; tile < rows; tile += kTile) {
        score_tile(queries + tile * dim, head.packed_keys + (block + panel) * dim, dim, scores + tile * kBlock + panel);
      }
    }
    const size_t padded = (count + kLanes - 1) / kLanes * kLanes;
    for (size_t row = 0; row < rows; ++row) {
      float* of_row = scores + row * kBlock;
      size_t valid = count;
      if (head.causal) {
        const size_t seen = first + row + 1;
        valid = seen > block ? smaller(count, seen - block) : 0;
      }
      if (head.bias != nullptr) {
        const float* bias = head.bias + (first + row) * head.keys + block;
        for (size_t k = 0; k < valid; ++k) {
          of_row[k] += bias[k] * kLog2E;
        }
      }
      for (size_t k = valid; k < padded; ++k) {
        of_row[k] = kMinusInfinity;
      }
      const float maximum = row_maximum(of_row, padded, softmax.maximum[row]);
      softmax.decay[row] = softmax.maximum[row] - (maximum == kMinusInfinity ? 0.0F : maximum);
      softmax.maximum[row] = maximum;
    }
    for (size_t row = rows; row < kAttentionRows; ++row) {
      softmax.decay[row] = 0;
    }
    for (size_t row = 0; row < kAttentionRows; row += kLanes) {
      store(softmax.decay + row, exp2_of_nonpositive(load(softmax.decay + row)));
    }
    for (size_t row = 0; row < rows; ++row) {
      weigh(softmax, row, scores + row * kBlock, padded);
    }
    for (size_t column = 0; column < dim; column += kPanel) {
      const float* values = head.packed_values + column * head.keys + block * kPanel;
      for (size_t tile = 0; tile < rows; tile += kTile) {
        value_tile(scores + tile * kBlock, values, count, softmax.decay + tile,
                   out + column * kAttentionRows + tile * kPanel);
      }
    }
  }

  for (size_t row = 0; row < rows; ++row) {
    const Place at = token_at(head, first + row);
    float* to = at.part.out + at.row;
    const float inverse = 1.0F / sum(softmax.sum[row]);
    for (size_t column = 0; column < dim; column += kPanel) {
      const float* from = out + column * kAttentionRows + row * kPanel;
      const size_t columns = smaller(kPanel, dim - column);
      for (size_t i = 0; i < columns; ++i) {
        to[column + i] = from[i] * inverse;
      }
    }
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
