// Weights in the order and precision in which the product reads them.
#pragma once

#include "linear/arithmetic.h"
#include "native/split.h"
#include "native/stored.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// What makes one row of the weight into words. group: features of a word, `apart` from one another, so that a run of
// group · apart features makes as many words; rounded: to bfloat16.
template <size_t group, size_t apart, bool rounded, typename T>
struct Words {
  const T* row;
  size_t in;

  float operator()(size_t word) const {
    const size_t first = word / apart * apart * group + word % apart;
    if constexpr (group == 1) {
      const float value = first < in ? widen(row[first]) : 0.0F;
      return rounded ? round_bf16(value) : value;
    } else {
      uint32_t bits = 0;
      for (size_t i = 0, k = first; i < group && k < in; ++i, k += apart) {
        if constexpr (group == 2) bits |= bf16_bits(round_bf16(widen(row[k]))) << (16 * i);
        if constexpr (group == 4) bits |= static_cast<uint32_t>(static_cast<uint8_t>(row[k])) << (8 * i);
      }
      return from_bits(bits);
    }
  }
};

// 128 · Σ weight of a column: what is to be taken from its sums where x is offset by 128.
inline float offset_of(const int8_t* row, size_t in) {
  int32_t sum = 0;
  for (size_t k = 0; k < in; ++k)
    sum += 128 * row[k];
  return __builtin_bit_cast(float, sum);
}

#if defined(__AMX_TILE__)
// Whether a row of the weight may not be split.
template <typename T>
bool hostile(const T* row, size_t in) {
  float largest = 0;
  for (size_t k = 0; k < in; ++k) {
    const float size = __builtin_fabsf(widen(row[k]));
    if (size != size) return true;
    if (size > largest) largest = size;
  }
  return !may_split(largest);
}
#endif

// tail: of a column, the word after the panels.
template <size_t group, size_t apart, bool rounded, typename T, typename Tail>
void pack(const T* weight, size_t out, size_t in, size_t words, const Tail& tail, float* packed) {
  const size_t columns = linear_panels(out) * kLinearPanel;
  for (size_t column = 0; column < columns; ++column) {
    const bool there = column < out;
    const Words<group, apart, rounded, T> row = {weight + (there ? column : 0) * in, there ? in : 0};
    float* const to = packed + column / kLinearPanel * words * kLinearPanel + column % kLinearPanel;
    for (size_t word = 0; word < words; ++word) {
      const float value = row(word);
      __builtin_memcpy(to + word * kLinearPanel, &value, sizeof(value));
    }
    const float last = there ? tail(row.row, in) : 0.0F;
    __builtin_memcpy(packed + columns * words + column, &last, sizeof(last));
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
