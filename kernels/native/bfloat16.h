// Bits of floats, and numbers rounded to bfloat16 that stay floats.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "native/lanes.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

inline float from_bits(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

inline uint32_t to_bits(float value) {
  return __builtin_bit_cast(uint32_t, value);
}

// To the nearest bfloat16, of two the even one; NaN stays NaN.
inline float round_bf16(float value) {
  const uint32_t bits = to_bits(value);
  if (value != value) return from_bits(bits | 0x400000U);
  return from_bits((bits + 0x7FFFU + (bits >> 16 & 1U)) & 0xFFFF0000U);
}

inline Lanes round_bf16(Lanes value) {
  const BitLanes bits = (BitLanes)value;
  const BitLanes rounded = (bits + 0x7FFFU + (bits >> 16 & 1U)) & 0xFFFF0000U;
  return value == value ? (Lanes)rounded
                        : (Lanes)(bits | 0x400000U);  // Or what is cut off may be all that made it NaN.
}

inline uint32_t bf16_bits(float rounded) {
  return to_bits(rounded) >> 16;
}

inline void round_bf16(float* values, size_t count) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    store(values + i, round_bf16(load(values + i)));
  }
  for (; i < count; ++i) {
    values[i] = round_bf16(all(values[i]))[0];
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
