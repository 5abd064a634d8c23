// What follows the product: sums to y.
#pragma once

#include "linear/arithmetic.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// x · Φ(x) in the tanh form, x · 1 / (1 + exp(-2u)) with u = √(2/π) (x + 0.044715 x³).
inline Lanes gelu(Lanes x) {
  constexpr float kMinusTwoU = -2 * 0.7978845608028654F * 1.4426950408889634F;
  const Lanes size = x < 0.0F ? -x : x;
  // 2^(-|…|) never overflows; for negative x, 1 / (1 + e) with e its inverse is e' / (1 + e').
  const Lanes e = exp2_of_nonpositive((kMinusTwoU * size) * (1.0F + 0.044715F * size * size));
  return x * (x < 0.0F ? e : all(1.0F)) * inverse(1.0F + e);
}

// What the columns of a panel need; each null where there is no such thing.
struct Columns {
  const float* offset;  // Whole numbers.
  const float* scale;
  const float* bias;
  const float* gate;
  const float* residual;
};

// What sums are: floats, or whole numbers, these with an offset to be taken from them or without.
enum class LinearSums { floats, whole, offset };

template <LinearSums kind>
inline Lanes add_sums(Lanes a, Lanes b) {
  return kind == LinearSums::floats ? a + b : (Lanes)((BitLanes)a + (BitLanes)b);
}

// One row of a tile, kLinearPanel columns, from sums to y. earlier: further sums, or null. row_scale: the row's part of
// the scale.
template <LinearSums kind>
inline void finish(LinearEpilogue epilogue, const float* sums, const float* earlier, const Columns& columns,
                   float row_scale, bool past_caches, float* y) {
  for (size_t i = 0; i < kLinearPanel; i += kLanes) {
    Lanes value = load(sums + i);
    if (earlier != nullptr) value = add_sums<kind>(load(earlier + i), value);
    if constexpr (kind == LinearSums::offset) value = (Lanes)((BitLanes)value - (BitLanes)load(columns.offset + i));
    if constexpr (kind != LinearSums::floats) {
      value = __builtin_convertvector((WholeLanes)value, Lanes) * (row_scale * load(columns.scale + i));
    }
    if (columns.bias != nullptr) value += load(columns.bias + i);
    if (epilogue == LinearEpilogue::gelu) value = gelu(value);
    if (epilogue == LinearEpilogue::gated_residual) {
      value = load(columns.residual + i) + load(columns.gate + i) * value;
    }
    past_caches ? store_past_caches(y + i, value) : store(y + i, value);
  }
}

inline void copy(const float* from, size_t count, float* to) {
  __builtin_memcpy(to, from, count * sizeof(float));
}

// One row of a panel into y. offsets: [out], after the packed weight.
template <LinearSums kind>
void finish_row(const LinearProblem& problem, size_t row, size_t panel, const float* sums, const float* earlier,
                const float* offsets, float row_scale) {
  const size_t column = panel * kLinearPanel;
  const size_t count = smaller(kLinearPanel, problem.out - column);
  const bool gated = problem.epilogue == LinearEpilogue::gated_residual;
  const size_t at = row * problem.out + column;
  const Columns columns = {
      offsets + column,
      kind == LinearSums::floats ? nullptr : problem.scale + column,
      problem.bias == nullptr ? nullptr : problem.bias + column,
      gated ? problem.gate + row / problem.tokens * problem.gate_stride + column : nullptr,
      gated ? problem.residual + at : nullptr,
  };
  if (count == kLinearPanel) {
    finish<kind>(problem.epilogue, sums, earlier, columns, row_scale, problem.past_caches, problem.y + at);
    return;
  }
  float whole[5][kLinearPanel] = {};
  Columns copies = {columns.offset, nullptr, nullptr, nullptr, nullptr};
  const auto widened = [&](const float* from, float* to) -> const float* {
    if (from == nullptr) return nullptr;
    copy(from, count, to);
    return to;
  };
  copies.scale = widened(columns.scale, whole[0]);
  copies.bias = widened(columns.bias, whole[1]);
  copies.gate = widened(columns.gate, whole[2]);
  copies.residual = widened(columns.residual, whole[3]);
  finish<kind>(problem.epilogue, sums, earlier, copies, row_scale, false, whole[4]);
  copy(whole[4], count, problem.y + at);
}

// sums = (add ? sums : 0) + block, from floats to whole numbers.
inline void add_whole(const float* block, size_t count, bool add, float* sums) {
  for (size_t i = 0; i < count; i += kLanes) {
    const WholeLanes value = __builtin_convertvector(load(block + i), WholeLanes);
    store(sums + i, (Lanes)(add ? value + (WholeLanes)load(sums + i) : value));
  }
}

// Has a tile's part of what finish_row reads and writes on its way while the tile is computed.
inline void fetch_tile(const LinearProblem& problem, size_t first_row, size_t rows, size_t panel) {
  for (size_t row = first_row; row < first_row + rows; ++row) {
    for (size_t i = 0; i < kLinearPanel; i += kLinearLine) {
      const size_t at = row * problem.out + panel * kLinearPanel + i;
      if (!problem.past_caches) __builtin_prefetch(problem.y + at, 1, 2);
      if (problem.residual != nullptr) __builtin_prefetch(problem.residual + at, 0, 2);
    }
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
