// What both kernels of FusedAttention read: where a token lies, and a query or key as the product needs it.
#pragma once

#include "attention/cpu.h"
#include "native/lanes.h"
#include "qk_norm_rope/row.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kMinusInfinity = -__builtin_inff();

inline size_t rounded_to(size_t size, size_t to) {
  return (size + to - 1) / to * to;
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

// Rows of queries, keys and values lie far apart: each is asked for this many rows ahead of its use.
constexpr size_t kRowsAhead = 8;

// factor · x: [head_dim], normalised and turned where the head says so.
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

inline void fetch_row(const float* row, size_t size) {
  for (size_t i = 0; i < size; i += 16)
    __builtin_prefetch(row + i);
}

// A query carries scale · log2(e): the softmax is one of powers of two.
inline void prepare_query(const AttentionHead& head, size_t token, float* y) {
  const Place at = token_at(head, token);
  if (token + kRowsAhead < head.tokens) {
    const Place ahead = token_at(head, token + kRowsAhead);
    fetch_row(ahead.part.q + ahead.row, head.head_dim);
  }
  prepare(head, at.part.q + at.row, at.part.q_norm, token, head.scale * kLog2E, y);
}

inline void prepare_key(const AttentionHead& head, size_t key, float* y) {
  const Place at = key_at(head, key);
  if (key + kRowsAhead < head.keys) {
    const Place ahead = key_at(head, key + kRowsAhead);
    fetch_row(ahead.part.k + ahead.row, head.head_dim);
  }
  prepare(head, at.part.k + at.row, at.part.k_norm, key, 1.0F, y);
}

// The first key that none of the rows before `end` sees, and those after it neither.
inline size_t keys_seen(const AttentionHead& head, size_t end) {
  return head.causal ? smaller(head.keys, end) : head.keys;
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
