// Weights in the order and precision in which the product reads them.
#pragma once

#include "linear/arithmetic.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

inline float widen(float value) {
  return value;
}

inline float widen(int8_t value) {
  return value;
}

struct BFloat16 {
  uint16_t bits;
};

inline float widen(BFloat16 value) {
  return from_bits(static_cast<uint32_t>(value.bits) << 16);
}

struct Float16 {
  uint16_t bits;
};

inline float widen(Float16 value) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000U) << 16;
  const uint32_t exponent = value.bits & 0x7C00U;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFFU) << 13;
  if (exponent == 0) {  // Subnormal in float16, normal in float32.
    const float size = static_cast<float>(value.bits & 0x3FFU) * 0x1p-24F;
    return from_bits(sign | to_bits(size));
  }
  return from_bits(sign | (magnitude + kRebias + (exponent == 0x7C00U ? kRebias : 0)));
}

// The word of `count` features, at most a group's.
template <LinearPrecision precision, typename T>
inline float word_of(const T* weight, size_t count) {
  using A = Arithmetic<precision>;
  if constexpr (A::kGroup == 1) {
    const float value = widen(weight[0]);
    return precision == LinearPrecision::bfloat16 ? round_bf16(value) : value;
  } else {
    uint32_t bits = 0;
    for (size_t i = 0; i < count; ++i) {
      if constexpr (A::kGroup == 2) {
        bits |= static_cast<uint32_t>(bf16_bits(round_bf16(widen(weight[i])))) << (16 * i);
      } else {
        bits |= static_cast<uint32_t>(static_cast<uint8_t>(weight[i])) << (8 * i);
      }
    }
    return from_bits(bits);
  }
}

// 128 · Σ weight of each column where x is offset by 128, otherwise zero.
template <LinearPrecision precision, typename T>
void pack_offsets(const T* weight, size_t out, size_t in, float* packed) {
  for (size_t column = 0; column < linear_panels(out) * kLinearPanel; ++column) {
    int32_t sum = 0;
    if constexpr (Arithmetic<precision>::kOffset) {
      for (size_t k = 0; column < out && k < in; ++k)
        sum += 128 * weight[column * in + k];
    }
    __builtin_memcpy(packed + column, &sum, sizeof(sum));
  }
}

template <LinearPrecision precision, typename T>
void pack(const T* weight, size_t out, size_t in, float* packed) {
  using A = Arithmetic<precision>;
  constexpr LinearShape kShape = A::kShape;
  const size_t words = linear_words(in, kShape.group, kShape.unit);
  const size_t blocks = linear_parts(words, kLinearBlock);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t first = linear_cut(words / kShape.unit, block, blocks) * kShape.unit;
    const size_t last = linear_cut(words / kShape.unit, block + 1, blocks) * kShape.unit;
    for (size_t column = 0; column < out; column += kLinearPanel) {
      for (size_t i = 0; i < kLinearPanel; ++i) {
        const bool there = column + i < out;
        const T* from = weight + (there ? column + i : 0) * in;
        for (size_t word = first; word < last; ++word) {
          const size_t k = word * A::kGroup;
          float* const to = packed + (word - first) * kLinearPanel + i;
          const float value = there && k < in ? word_of<precision>(from + k, smaller(in - k, A::kGroup)) : 0.0F;
          __builtin_memcpy(to, &value, sizeof(value));
        }
      }
      packed += (last - first) * kLinearPanel;
    }
  }
  if constexpr (A::kInt8) pack_offsets<precision>(weight, out, in, packed);
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
