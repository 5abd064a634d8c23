// A tile of sums in registers: rows of x by the kLinearPanel columns of a panel.
#pragma once

#include "linear/arithmetic.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// What a tile brings into the second-level cache while it is computed: a line for every kLineEach words.
constexpr size_t kLineEach = 4;

template <LinearPrecision precision, size_t kRows>
inline __attribute__((always_inline)) void step(const float* x, const float* weight, Lanes (&low)[kRows],
                                                Lanes (&high)[kRows]) {
  const Lanes weight_low = load(weight);
  const Lanes weight_high = load(weight + kLanes);
#pragma GCC unroll 16
  for (size_t row = 0; row < kRows; ++row) {
    const Lanes value = all_words(x + row);
    low[row] = add_product<precision>(low[row], value, weight_low);
    high[row] = add_product<precision>(high[row], value, weight_high);
  }
}

// A tile's sums from `depth` words: sums[kRows][kLinearPanel] = (add ? sums : 0) + x · panel. An element's products are
// added one by one in the order of the words, whatever kRows is. ahead: what to have in the cache next.
template <LinearPrecision precision, size_t kRows>
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
    const float* weight = panel + pair;
    size_t k = 0;
    for (; k + kLineEach <= depth; k += kLineEach, weight += kLineEach * kPanel) {
      if (pair == 0) __builtin_prefetch(ahead + k / kLineEach * kLinearLine, 0, 2);
#pragma GCC unroll 1  // More would run out of registers.
      for (size_t i = 0; i < kLineEach; ++i)
        step<precision, kRows>(x + (k + i) * kRows, weight + i * kPanel, low, high);
    }
    for (; k < depth; ++k, weight += kPanel)
      step<precision, kRows>(x + k * kRows, weight, low, high);
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      store(sums + row * kPanel + pair, low[row]);
      store(sums + row * kPanel + pair + kLanes, high[row]);
    }
  }
}

using Multiply = void(const float* x, const float* panel, size_t depth, bool add, float* sums, const float* ahead);

template <LinearPrecision precision>
Multiply* multiply_of(size_t rows) {
  static constexpr Multiply* kOf[] = {
      &multiply<precision, 1>,  &multiply<precision, 2>,  &multiply<precision, 3>,  &multiply<precision, 4>,
      &multiply<precision, 5>,  &multiply<precision, 6>,
#if defined(__AVX512F__)
      &multiply<precision, 7>,  &multiply<precision, 8>,  &multiply<precision, 9>,  &multiply<precision, 10>,
      &multiply<precision, 11>, &multiply<precision, 12>, &multiply<precision, 13>, &multiply<precision, 14>,
#endif
  };
  static_assert(sizeof(kOf) / sizeof(kOf[0]) == Arithmetic<precision>::kTileRows, "one for each number of rows");
  return kOf[rows - 1];
}

// The tile unit set to eight tiles of 16 rows by 64 bytes, as long as this lives; nothing where it is not used.
template <bool used>
class TileRegisters {};

#if defined(__AMX_TILE__)

template <>
class TileRegisters<true> {
 public:
  TileRegisters() {
    struct alignas(64) Configuration {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const configuration;
    __asm__ volatile("" : : "r"(&configuration) : "memory");  // The intrinsic does not say that it reads memory.
    _tile_loadconfig(&configuration);
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }
};

// As multiply, of up to 32 rows of x, `stride` words apart; two tiles by two, or one by two where both is false. All
// 32, or 16, rows of sums are written. Products are added in the unit's own order, the same for every row.
template <LinearPrecision precision, bool both>
void multiply_tiles(const float* x, size_t stride, const float* panel, size_t depth, bool add, float* sums,
                    const float* ahead, size_t lines) {
  constexpr size_t kRow = kLinearPanel * sizeof(float);
  constexpr size_t kLower = 16 * kLinearPanel;
  __asm__ volatile("" : : : "memory");
  if (add) {
    _tile_loadd(0, sums, kRow);
    _tile_loadd(1, sums + 16, kRow);
    if constexpr (both) {
      _tile_loadd(2, sums + kLower, kRow);
      _tile_loadd(3, sums + kLower + 16, kRow);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const size_t steps = depth / 16;
  for (size_t i = 0; i < steps; ++i) {
    const float* const weight = panel + i * 16 * kLinearPanel;
    for (size_t line = lines * i / steps; line < lines * (i + 1) / steps; ++line)
      __builtin_prefetch(ahead + line * kLinearLine, 0, 2);
    _tile_loadd(6, weight, kRow);
    _tile_loadd(4, x + i * 16, stride * sizeof(float));
    _tile_loadd(7, weight + 16, kRow);
    if constexpr (both) _tile_loadd(5, x + 16 * stride + i * 16, stride * sizeof(float));
    if constexpr (precision == LinearPrecision::bfloat16) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (both) {
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    } else {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      if constexpr (both) {
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
  }
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + 16, kRow);
  if constexpr (both) {
    _tile_stored(2, sums + kLower, kRow);
    _tile_stored(3, sums + kLower + 16, kRow);
  }
  __asm__ volatile("" : : : "memory");
}

#endif

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
