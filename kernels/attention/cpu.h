// The maths of FusedAttention over one head, compiled once per level (cpu.cpp), and the operators over it (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kFusedAttention;
extern const Operator kFusedAttentionBias;
extern const Operator kFusedAttentionNormRotary;
extern const Operator kFusedAttention2NormRotary;
extern const Operator kFusedAttentionBf16;
extern const Operator kFusedAttentionBiasBf16;
extern const Operator kFusedAttentionNormRotaryBf16;
extern const Operator kFusedAttention2NormRotaryBf16;

constexpr size_t kAttentionMaxHeadDim = 512;

// What queries, keys, values and weights are rounded to before they are multiplied; sums are float32.
enum class AttentionPrecision { float32, bfloat16 };

// Keys that one task packs.
constexpr size_t kAttentionSlice = 32;

// How a level cuts its work, and what memory it needs, in floats.
struct AttentionShape {
  size_t rows;         // Of a task.
  size_t packed_keys;  // Of a head; a multiple of a cache line, as packed_values.
  size_t packed_values;
  size_t scratch;  // Of a task that packs or computes.
};

// One part of the tokens, seen from one head: each pointer at its first token's first element.
struct AttentionPart {
  const float* q = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* q_norm = nullptr;  // [head_dim]; null: neither norm nor rotary.
  const float* k_norm = nullptr;
  float* out = nullptr;
  size_t tokens = 0;
  size_t keys = 0;
};

// One head of one row of the batch. The parts lie one after the other along tokens and keys; with rotary tables a
// query's or key's place among all of them is its row of the tables.
struct AttentionHead {
  AttentionPart parts[2];
  const float* cos = nullptr;  // [tokens, head_dim / 2]
  const float* sin = nullptr;
  const float* bias = nullptr;  // [tokens, keys] or null
  size_t tokens = 0;            // Of both parts.
  size_t keys = 0;
  size_t head_dim = 0;
  size_t width = 0;  // Elements from one token to the next.
  float scale = 0;
  float epsilon = 0;
  bool causal = false;
  float* packed_keys = nullptr;  // As the shape says, at addresses that a cache line divides.
  float* packed_values = nullptr;
};

using AttentionShapeOf = AttentionShape(AttentionPrecision precision, size_t keys, size_t head_dim);
// Writes the keys and values first … last - 1 into packed_keys and packed_values, in an order of the level's own; first
// is a multiple of kAttentionSlice, last another or the end.
using AttentionPack = void(AttentionPrecision precision, const AttentionHead& head, size_t first, size_t last,
                           float* scratch);
// Computes a task's rows of out from `first` on, or those up to the end.
using AttentionRowsOf = void(AttentionPrecision precision, const AttentionHead& head, size_t first, float* scratch);

VITRIFY_PER_LEVEL(attention_shape, AttentionShapeOf);
VITRIFY_PER_LEVEL(attention_pack, AttentionPack);
VITRIFY_PER_LEVEL(attention_rows, AttentionRowsOf);

}  // namespace vitrify
