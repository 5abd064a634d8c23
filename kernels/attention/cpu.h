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

constexpr size_t kAttentionMaxHeadDim = 512;

// Rows of q that one task computes, keys that one task packs, and keys whose scores are there at a time.
constexpr size_t kAttentionRows = 96;
constexpr size_t kAttentionSlice = 128;
constexpr size_t kAttentionBlock = 192;

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
  float* packed_keys = nullptr;    // attention_packed_keys(…) elements
  float* packed_values = nullptr;  // attention_packed_values(…) elements
};

constexpr size_t attention_rounded(size_t size, size_t to) {
  return (size + to - 1) / to * to;
}
// Keys lie as [keys][head_dim], the last one repeated until the tiles are full; values in panels of columns.
constexpr size_t attention_packed_keys(size_t keys, size_t head_dim) {
  return attention_rounded((keys + 11) * head_dim, 16);
}
constexpr size_t attention_packed_values(size_t keys, size_t head_dim) {
  return keys * attention_rounded(head_dim, 32);
}
// Elements of scratch that attention_pack and attention_rows need, each call of its own.
constexpr size_t attention_scratch(size_t head_dim) {
  return kAttentionRows * (head_dim + attention_rounded(head_dim, 32) + kAttentionBlock) + 32 * head_dim;
}

// Writes the keys and values first … last - 1 into packed_keys and packed_values; first is a multiple of
// kAttentionSlice, last another or the end.
using AttentionPack = void(const AttentionHead& head, size_t first, size_t last, float* scratch);
// Computes kAttentionRows rows of out from `first` on, or those up to the end.
using AttentionRowsOf = void(const AttentionHead& head, size_t first, float* scratch);

VITRIFY_PER_LEVEL(attention_pack, AttentionPack);
VITRIFY_PER_LEVEL(attention_rows, AttentionRowsOf);

}  // namespace vitrify
