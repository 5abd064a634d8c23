// Rows of x on their way into scratch: rounded to the precision, and in the order in which the product reads them.
#pragma once

#include "linear/arithmetic.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef float AnyQuad __attribute__((vector_size(16), aligned(4), may_alias));

// Four words of four rows: rows become columns, `rows` words apart.
inline void turn(const float* const (&from)[4], size_t rows, float* to) {
  const Quad a = *reinterpret_cast<const AnyQuad*>(from[0]);
  const Quad b = *reinterpret_cast<const AnyQuad*>(from[1]);
  const Quad c = *reinterpret_cast<const AnyQuad*>(from[2]);
  const Quad d = *reinterpret_cast<const AnyQuad*>(from[3]);
  const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *reinterpret_cast<AnyQuad*>(to) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  *reinterpret_cast<AnyQuad*>(to + rows) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  *reinterpret_cast<AnyQuad*>(to + 2 * rows) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *reinterpret_cast<AnyQuad*>(to + 3 * rows) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// `count` words of `rows` rows that lie `stride` apart, word by word: x[count][rows], and up to three words after it,
// which may be anything.
void turn_rows(const float* from, size_t stride, size_t rows, size_t count, float* x) {
  size_t k = 0;
  // A line of every row at a time. The last rows first: what a quad has too much is then overwritten by the next
  // word's first rows.
  for (; k + kLinearLine <= count; k += kLinearLine) {
    for (size_t quad = (rows + 3) / 4; quad-- > 0;) {
      const float* lines[4];
      for (size_t i = 0; i < 4; ++i)
        lines[i] = from + smaller(4 * quad + i, rows - 1) * stride + k;
      for (size_t i = 0; i < kLinearLine; i += 4) {
        const float* const at[4] = {lines[0] + i, lines[1] + i, lines[2] + i, lines[3] + i};
        turn(at, rows, x + (k + i) * rows + 4 * quad);
      }
    }
  }
  for (; k < count; ++k) {
    for (size_t i = 0; i < rows; ++i)
      __builtin_memcpy(x + k * rows + i, from + i * stride + k, sizeof(float));
  }
}

// Calls body(from, count) for each part of features first … last - 1 of a row.
template <typename Body>
inline void for_parts(const LinearProblem& problem, size_t row, size_t first, size_t last, const Body& body) {
  for (size_t part = 0, start = 0; part < 2; start += problem.features[part], ++part) {
    const size_t features = problem.features[part];
    const size_t from = first > start ? first - start : 0;
    if (last <= start || from >= features) continue;
    body(problem.x[part] + row * features + from, features, smaller(last - start, features) - from);
  }
}

// The largest |x| of a row, at least 1e-30; NaN where a value is not finite.
float largest(const LinearProblem& problem, size_t row) {
  Lanes most = all(1e-30F);
  Lanes wrong = {};
  const auto take = [&](Lanes value) {
    most = larger(value < 0.0F ? -value : value, most);
    wrong += value * 0.0F;
  };
  for_parts(problem, row, 0, problem.features[0] + problem.features[1], [&](const float* from, size_t, size_t count) {
    size_t k = 0;
    for (; k + kLanes <= count; k += kLanes)
      take(load(from + k));
    for (; k < count; ++k)
      take(all(from[k]));
  });
  float found = most[0];
  for (int i = 1; i < kLanes; ++i)
    found = most[i] > found ? most[i] : found;
  return found + sum(wrong);
}

// What a word of x is made of.
template <size_t group>
struct Element {
  using Type = float;
};
template <>
struct Element<2> {
  using Type = uint16_t;
};
template <>
struct Element<4> {
  using Type = uint8_t;
};

// `count` values of one row. inverse: at int8, what turns x into steps of its scale.
template <LinearPrecision precision>
inline void narrow(const float* from, size_t count, float inverse,
                   typename Element<Arithmetic<precision>::kGroup>::Type* to) {
  using A = Arithmetic<precision>;
  if constexpr (A::kGroup == 1) {
    const auto one = [inverse](Lanes value) { return A::kInt8 ? round_whole(value * inverse) : round_bf16(value); };
    size_t k = 0;
    for (; k + kLanes <= count; k += kLanes)
      store(to + k, one(load(from + k)));
    for (; k < count; ++k)
      to[k] = one(all(from[k]))[0];
  }
#if defined(__AVX512BF16__)
  if constexpr (A::kGroup == 2) {
    for (size_t k = 0; k < count; k += 16) {
      const __mmask16 there =
          count - k < 16 ? static_cast<__mmask16>((1U << (count - k)) - 1) : static_cast<__mmask16>(0xFFFF);
      const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, from + k));
      _mm256_mask_storeu_epi16(to + k, there, (__m256i)rounded);
    }
  }
#endif
#if defined(__AVX512VNNI__)
  if constexpr (A::kGroup == 4) {
    for (size_t k = 0; k < count; k += 16) {
      const __mmask16 there =
          count - k < 16 ? static_cast<__mmask16>((1U << (count - k)) - 1) : static_cast<__mmask16>(0xFFFF);
      const __m512 steps = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, from + k), _mm512_set1_ps(inverse));
      const __m512i whole = _mm512_maskz_cvtps_epi32(0xFFFF, steps);  // Unmasked, GCC 12 warns of its own header.
      _mm512_mask_cvtusepi32_storeu_epi8(to + k, there, _mm512_add_epi32(whole, _mm512_set1_epi32(128)));
    }
  }
#endif
}

// Words first … last - 1 of a row, zeros after its last feature.
template <LinearPrecision precision>
inline void narrow_row(const LinearProblem& problem, size_t row, size_t first, size_t last, float inverse,
                       float* words) {
  constexpr size_t kGroup = Arithmetic<precision>::kGroup;
  using Type = typename Element<kGroup>::Type;
  Type* to = reinterpret_cast<Type*>(words);
  Type* const end = to + (last - first) * kGroup;
  const size_t in = problem.features[0] + problem.features[1];
  for_parts(problem, row, smaller(first * kGroup, in), smaller(last * kGroup, in),
            [&](const float* from, size_t, size_t count) {
              narrow<precision>(from, count, inverse, to);
              to += count;
            });
  while (to < end)
    *to++ = 0;
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
