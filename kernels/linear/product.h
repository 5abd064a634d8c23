// A tile of sums in registers: rows of x by the kLinearPanel columns of a panel.
#pragma once

#include "linear/arithmetic.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// What a tile brings into the second-level cache while it is computed: a line for every kLineEach words.
constexpr size_t kLineEach = 4;

// A vector of the panel's factors of one word of x. halves: the panel holds bfloat16 as the tile unit wants them, in
// each word features a half of kTileFeatures apart; otherwise words as x has them.
template <bool halves>
inline Lanes factors(const float* panel, size_t k, size_t column) {
  if constexpr (!halves) return load(panel + k * kLinearPanel + column);
  constexpr size_t kApart = kTileFeatures / 2;
  const BitLanes words = (BitLanes)load(panel + (k / kTileFeatures * kApart + k % kApart) * kLinearPanel + column);
  return (Lanes)(k / kApart % 2 != 0 ? words & 0xFFFF0000U : words << 16);
}

template <LinearPrecision precision, bool halves, size_t kRows>
inline __attribute__((always_inline)) void step(const float* x, const float* panel, size_t k, size_t column,
                                                Lanes (&low)[kRows], Lanes (&high)[kRows]) {
  const Lanes weight_low = factors<halves>(panel, k, column);
  const Lanes weight_high = factors<halves>(panel, k, column + kLanes);
#pragma GCC unroll 16
  for (size_t row = 0; row < kRows; ++row) {
    const Lanes value = all_words(x + k * kRows + row);
    low[row] = add_product<precision>(low[row], value, weight_low);
    high[row] = add_product<precision>(high[row], value, weight_high);
  }
}

// A tile's sums from `depth` words: sums[kRows][kLinearPanel] = (add ? sums : 0) + x · panel. An element's products are
// added one by one in the order of the words, whatever kRows is. ahead: what to have in the cache next.
template <LinearPrecision precision, bool halves, size_t kRows>
void multiply(const float* x, const float* panel, size_t depth, bool add, float* sums, const float* ahead) {
  constexpr size_t kPanel = kLinearPanel;
  constexpr size_t kPair = 2 * kLanes;
  for (size_t pair = 0; pair < kPanel; pair += kPair) {
    Lanes low[kRows];
    Lanes high[kRows];
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      low[row] = add ? load(sums + row * kPanel + pair) : Lanes{};
      high[row] = add ? load(sums + row * kPanel + pair + kLanes) : Lanes{};
    }
    size_t k = 0;
    for (; k + kLineEach <= depth; k += kLineEach) {
      if (pair == 0) __builtin_prefetch(ahead + k / kLineEach * kLinearLine, 0, 2);
#pragma GCC unroll 1  // More would run out of registers.
      for (size_t i = 0; i < kLineEach; ++i)
        step<precision, halves, kRows>(x, panel, k + i, pair, low, high);
    }
    for (; k < depth; ++k)
      step<precision, halves, kRows>(x, panel, k, pair, low, high);
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      store(sums + row * kPanel + pair, low[row]);
      store(sums + row * kPanel + pair + kLanes, high[row]);
    }
  }
}

using Multiply = void(const float* x, const float* panel, size_t depth, bool add, float* sums, const float* ahead);

template <LinearPrecision precision, bool halves>
Multiply* multiply_of(size_t rows) {
  constexpr LinearPrecision p = precision;
  static constexpr Multiply* kOf[] = {
      &multiply<p, halves, 1>,  &multiply<p, halves, 2>,  &multiply<p, halves, 3>,  &multiply<p, halves, 4>,
      &multiply<p, halves, 5>,  &multiply<p, halves, 6>,
#if defined(__AVX512F__)
      &multiply<p, halves, 7>,  &multiply<p, halves, 8>,  &multiply<p, halves, 9>,  &multiply<p, halves, 10>,
      &multiply<p, halves, 11>, &multiply<p, halves, 12>, &multiply<p, halves, 13>, &multiply<p, halves, 14>,
#endif
  };
  static_assert(sizeof(kOf) / sizeof(kOf[0]) == Arithmetic<precision>::kTileRows, "one for each number of rows");
  return kOf[rows - 1];
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
