// One head of one token: RMSNorm, then the rotary embedding. For the maths of QkNormRope and of FusedAttention,
// compiled once per level.
#pragma once

#include <cstddef>

namespace vitrify::VITRIFY_LEVEL {
namespace {

// y = factor · rotary(x / sqrt(mean(x²) + epsilon) · norm); x and y: [2 · half], not overlapping.
inline void norm_rope_row(const float* __restrict x, const float* __restrict norm, const float* __restrict cos,
                          const float* __restrict sin, size_t half, float epsilon, float factor, float* __restrict y) {
  // Element i is added into lane i mod 32, then the lanes in order: the same sum at every level but for fused products.
  constexpr size_t kSquares = 32;
  float squares[kSquares] = {};
  const size_t size = 2 * half;
  size_t i = 0;
  for (; i + kSquares <= size; i += kSquares) {
    for (size_t lane = 0; lane < kSquares; ++lane) {
      squares[lane] += x[i + lane] * x[i + lane];
    }
  }
  for (size_t lane = 0; i < size; ++i, ++lane) {
    squares[lane] += x[i] * x[i];
  }
  for (size_t step = kSquares / 2; step > 0; step /= 2) {
    for (size_t lane = 0; lane < step; ++lane) {
      squares[lane] += squares[lane + step];
    }
  }
  const float inverse = factor / __builtin_sqrtf(squares[0] / static_cast<float>(size) + epsilon);
  for (size_t pair = 0; pair < half; ++pair) {
    const float a = x[2 * pair] * inverse * norm[2 * pair];
    const float b = x[2 * pair + 1] * inverse * norm[2 * pair + 1];
    y[2 * pair] = a * cos[pair] - b * sin[pair];
    y[2 * pair + 1] = a * sin[pair] + b * cos[pair];
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
