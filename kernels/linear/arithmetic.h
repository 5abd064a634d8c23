// How the level that is being compiled rounds and multiplies at each precision. A level without an instruction for a
// precision rounds the factors the same and multiplies them as floats.
#pragma once

#include <stdint.h>

#include "linear/cpu.h"
#include "native/bfloat16.h"
#include "native/lanes.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vitrify::VITRIFY_LEVEL {
namespace {

#if defined(__AMX_TILE__)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
#if defined(__AVX512BF16__)
constexpr bool kHasDotBf16 = true;
#else
constexpr bool kHasDotBf16 = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool kHasDotInt8 = true;
#else
constexpr bool kHasDotInt8 = false;
#endif

// Where there is a tile unit: the bfloat16 of a tile's row. A word of the weight holds two of them, a half apart.
constexpr size_t kTileFeatures = 32;

// How a product on vector registers is made.
template <LinearPrecision precision>
struct Arithmetic {
  static constexpr bool kFloat = precision == LinearPrecision::float32;
  static constexpr bool kInt8 = precision == LinearPrecision::int8;
  static constexpr size_t kGroup = kFloat ? 1 : kInt8 ? (kHasDotInt8 ? 4 : 1) : (kHasDotBf16 ? 2 : 1);
  // Whole numbers multiplied as floats: exact within a block, whose sums are therefore added up as whole numbers.
  static constexpr bool kBlockSums = kInt8 && kGroup == 1;
  static_assert(127 * 128 * kLinearBlock <= 1 << 24, "a float holds every whole number that a block's sum may be");
  // The instruction takes x as uint8: x + 128 is multiplied, and 128 · Σ weight taken from the sums.
  static constexpr bool kOffset = kGroup == 4;
  // An accumulator is two registers for each row: as many rows as there are registers, less what the operands need.
  static constexpr size_t kTileRows = kLanes == 16 ? 14 : 6;
  static constexpr LinearShape kShape = {kGroup,        kGroup,     kTileRows, kLinearRows / kTileRows * kTileRows,
                                         kLinearPanels, kLinearRows};
};

typedef int32_t WholeLanes __attribute__((vector_size(4 * kLanes)));

// To the nearest whole number, of two the even one; |value| < 2^22.
inline Lanes round_whole(Lanes value) {
  constexpr float kWhole = 12582912.0F;  // 1.5 · 2^23, near which a float has no bits below 1.
#if defined(__x86_64__)
  __asm__("" : "+x"(value));  // Or the product that it may be would be fused with the sum, and rounded once.
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#endif
  return value + kWhole - kWhole;
}

// sum + x · weight, in every word over the features of its group.
template <LinearPrecision precision>
inline Lanes add_product(Lanes sum, Lanes x, Lanes weight) {
  using A = Arithmetic<precision>;
#if defined(__AVX512BF16__)
  if constexpr (A::kGroup == 2) return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)weight);
#endif
#if defined(__AVX512VNNI__)
  if constexpr (A::kGroup == 4) return (Lanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)weight);
#endif
  if constexpr (A::kGroup == 1) return sum + x * weight;
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
