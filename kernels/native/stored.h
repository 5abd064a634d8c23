// Elements of a weight as a checkpoint stores them, as floats.
#pragma once

#include <stdint.h>

#include "native/bfloat16.h"

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

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
