// Numbers rounded to bfloat16 that stay floats.
#pragma once

#include <stddef.h>

#include "native/lanes.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// To the nearest bfloat16, of two the even one; NaN stays NaN.
inline Lanes round_bf16(Lanes value) {
  const BitLanes bits = (BitLanes)value;
  const BitLanes rounded = (bits + 0x7FFFU + (bits >> 16 & 1U)) & 0xFFFF0000U;
  return value == value ? (Lanes)rounded : value;
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
