// A vector register of floats at the level that is being compiled. GCC's and Clang's vector extension: operators act
// on every lane, and a product that is added becomes one fused instruction where the level has it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace vitrify::VITRIFY_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitLanes __attribute__((vector_size(4 * kLanes)));

inline size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

// A `load` and `store` for any address.
typedef float AnyLanes __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Lanes load(const float* from) {
  return *reinterpret_cast<const AnyLanes*>(from);
}

inline void store(float* to, Lanes value) {
  *reinterpret_cast<AnyLanes*>(to) = value;
}

// As `store`, past the caches where the level can and a vector register divides the address: for much memory that is
// not read again soon. What is stored so is seen by other threads after store_fence().
inline void store_past_caches(float* to, Lanes value) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Lanes) == 0) {
    _mm512_stream_ps(to, (__m512)value);
    return;
  }
#endif
  store(to, value);
}

inline void store_fence() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// A word in every lane, bits as they are.
inline Lanes all_words(const float* word) {
  uint32_t bits;
  __builtin_memcpy(&bits, word, sizeof(bits));
  return (Lanes)(BitLanes{} + bits);
}

inline Lanes all(float value) {
  return value - Lanes{};
}

// The second where either is NaN.
inline Lanes larger(Lanes a, Lanes b) {
  return a > b ? a : b;
}

// Lane by lane, in order.
inline float sum(Lanes value) {
  float total = value[0];
  for (int i = 1; i < kLanes; ++i) {
    total += value[i];
  }
  return total;
}

// 2^x for x ≤ 0. Relative error below 1.5e-7 down to x = -125; 0 below that; NaN for NaN.
// x = n + f with n whole and |f| ≤ 1/2. 2^f is the minimax polynomial of degree 6 with value 1 at 0 (off by 2.6e-9,
// found by Remez exchange on the relative error); 2^n is made of its bits.
inline Lanes exp2_of_nonpositive(Lanes x) {
  // 1.5 · 2^23, near which a float has no bits below 1, and the bias of exponents.
  constexpr float kWhole = 12582912.0F + 127.0F;
  const Lanes shifted = x + kWhole;
  const Lanes f = x - (shifted - kWhole);
  Lanes p = f * 1.5594677639e-4F + 1.3406643905e-3F;
  p = p * f + 9.6176929749e-3F;
  p = p * f + 5.5503105510e-2F;
  p = p * f + 2.4022652783e-1F;
  p = p * f + 6.9314721497e-1F;
  p = p * f + 1.0F;
  const BitLanes power = (BitLanes)shifted << 23;  // Of shifted, n + 127 alone stays.
  return x < -125.0F ? Lanes{} : p * (Lanes)power;
}

// 1 / x for 1 ≤ x ≤ 2.
inline Lanes inverse(Lanes x) {
#if defined(__AVX512F__)
  const Lanes near = (Lanes)_mm512_maskz_rcp14_ps(0xFFFF, (__m512)x);  // Unmasked, GCC 12 warns of its own header.
  return near + near * (1.0F - x * near);  // A step of Newton's; a division takes three times as long.
#else
  return 1.0F / x;
#endif
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
