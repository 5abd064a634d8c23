// A float32 product on the tile unit, which multiplies bfloat16: each factor is split into three bfloat16 whose sum it
// is, and six of the nine products of the parts are added up in float32; the other three are below 2^-26 of the whole.
// Source: Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations", ARITH 2019. A factor stored in bfloat16 is its own first part: three products, none left out.
#pragma once

#include "native/lanes.h"
#include "native/tiles.h"

#if defined(__AMX_TILE__)

namespace vitrify::VITRIFY_LEVEL {
namespace {

constexpr size_t kSplitParts = 3;
// Features of a step: a tile's row holds those many bfloat16.
constexpr size_t kSplitFeatures = 32;
// Words of one part of a step, of 32 rows of x or 32 columns of the weight.
constexpr size_t kSplitStep = 2 * kTileSize;

// The unit takes bfloat16 below 2^-126 for zero, and gives zero where a product or sum is below. A part that is lost
// so is below 2^-86 of the largest factor where that is not below kSplitLeast. And no product or sum of up to 2^17 of
// them overflows while the factors are at most kSplitMost.
constexpr float kSplitLeast = 0x1p-40F;
constexpr float kSplitMost = 0x1p50F;

// Whether a row of factors may be split. largest: of their magnitudes; NaN where one is not finite.
inline bool may_split(float largest) {
  return largest == 0.0F || (largest >= kSplitLeast && largest <= kSplitMost);
}

// Word j: that part of first[j] in the lower half, of second[j] in the upper.
struct Split {
  BitLanes part[kSplitParts];
};

// Exact for |values| from 2^-103 up to kSplitMost; of smaller ones what is below 2^-126 may be lost.
// Each part is the bfloat16 nearest to what is left (ties away from zero), the last is all of it.
inline Split split(Lanes first, Lanes second) {
  constexpr uint32_t kUpper = 0xFFFF0000U;
  Split result;
  for (size_t part = 0; part + 1 < kSplitParts; ++part) {
    const BitLanes a = ((BitLanes)first + 0x8000U) & kUpper;
    const BitLanes b = ((BitLanes)second + 0x8000U) & kUpper;
    result.part[part] = a >> 16 | b;
    first -= (Lanes)a;
    second -= (Lanes)b;
  }
  result.part[kSplitParts - 1] = (BitLanes)first >> 16 | ((BitLanes)second & kUpper);
  return result;
}

// sums + x · weight over one step, 32 rows by 32 columns in tiles 0 … 3 (row by row of tiles), or 16 rows in tiles 0
// and 1 where `both` is false; tiles 4 … 7 are overwritten.
// x: [kSplitParts][2][16 rows][16 words], weight: [weight_parts][16 words][32 columns]; word j holds features j and
// j + 16, as `split` makes it of two registers. weight_parts: kSplitParts, or 1 where the others are zero: the same
// bits come out.
template <size_t weight_parts, bool both>
inline void add_split_products(const float* x, const float* weight) {
  constexpr size_t kRow = 2 * kTileWords * sizeof(float);
  const auto take_x = [x](size_t part) __attribute__((always_inline)) {
    // x comes from the second-level cache; the weight, which stays in the first, is not to make room for it.
    _tile_stream_loadd(4, x + part * kSplitStep, 64);
    if constexpr (both) _tile_stream_loadd(5, x + part * kSplitStep + kTileSize, 64);
  };
  const auto take_weight = [weight](size_t part) __attribute__((always_inline)) {
    _tile_loadd(6, weight + part * kSplitStep, kRow);
    _tile_loadd(7, weight + part * kSplitStep + kTileWords, kRow);
  };
  const auto multiply = []() __attribute__((always_inline)) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (both) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  // Small products before the large one; from each to the next one factor stays.
  if constexpr (weight_parts == kSplitParts) {
    take_x(0);
    take_weight(2);
    multiply();
    take_weight(1);
    multiply();
    take_x(1);
    multiply();
    take_weight(0);
  } else {
    take_weight(0);
    take_x(1);
  }
  multiply();
  take_x(2);
  multiply();
  take_x(0);
  multiply();
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
