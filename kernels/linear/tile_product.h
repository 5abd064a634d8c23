// Sums of 32 rows of x by the 32 columns of a panel on the tile unit.
#pragma once

#include "linear/arithmetic.h"
#include "native/split.h"

#if defined(__AMX_TILE__)

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Products that the unit is used for: of bfloat16; of int8; of float32 split into parts, and the same with a weight
// that is its own first part.
enum class TileProduct { bfloat16, int8, split, split_by_bfloat16 };

// Words: of x, the weight as it is kept, and the weight as it is multiplied.
template <TileProduct product>
struct TileShape {
  static constexpr bool kInt8 = product == TileProduct::int8;
  static constexpr bool kSplit = product == TileProduct::split || product == TileProduct::split_by_bfloat16;
  static constexpr bool kSplitWeight = product == TileProduct::split;
  static constexpr size_t kFeatures = kInt8 ? 2 * kTileFeatures : kTileFeatures;
  static constexpr size_t kXParts = kSplit ? kSplitParts : 1;
  static constexpr size_t kWeightParts = kSplitWeight ? kSplitParts : 1;
  // Words of a step: of a tile's rows of x, of a panel as it is kept and as it is multiplied.
  static constexpr size_t kXStep = kXParts * kLinearTile * kTileWords;
  static constexpr size_t kKeptStep = (kSplitWeight ? 2 : 1) * kTileWords * kLinearPanel;
  static constexpr size_t kPanelStep = kWeightParts * kTileWords * kLinearPanel;
  // Steps of a chunk. A split weight's is larger than the first-level cache, which costs little: a step is six
  // products.
  static constexpr size_t kChunk = kSplit ? 8 : 16;
  // How many chunks ahead of its use the kept weight is brought into the cache.
  static constexpr size_t kWeightAhead = kSplitWeight ? 2 : 1;
  static constexpr size_t kBlock = kSplit ? 32 : 64;  // Steps of a block.
  static constexpr size_t steps(size_t features) { return (features + kFeatures - 1) / kFeatures; }
  // Most rows of x that fit its scratch.
  static constexpr size_t rows(size_t steps) {
    const size_t fit =
        kLinearTileX / (kXStep / kLinearTile * smaller(steps == 0 ? 1 : steps, kBlock)) / kLinearTile * kLinearTile;
    return smaller(fit, kLinearTileRows);
  }
};

// sums[32][kLinearPanel] = x · panel over `steps` steps; of 16 rows where both is false. between(): called once in each
// step, for what vector registers can do while the unit works; between.rest() does what is left.
template <TileProduct product, bool both, typename Between>
void multiply_tiles(const float* x, const float* panel, size_t steps, float* sums, Between& between) {
  using S = TileShape<product>;
  constexpr size_t kRow = kLinearPanel * sizeof(float);
  constexpr size_t kLower = kTileRows * kLinearPanel;
  tile_memory_fence();
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (both) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (size_t step = 0; step < steps; ++step, x += S::kXStep, panel += S::kPanelStep) {
    if constexpr (S::kSplit) {
      add_split_products<S::kWeightParts, both>(x, panel);
    } else {
      _tile_loadd(6, panel, kRow);
      _tile_stream_loadd(4, x, 64);  // From the second-level cache, as in add_split_products.
      _tile_loadd(7, panel + kTileWords, kRow);
      if constexpr (both) _tile_stream_loadd(5, x + kTileSize, 64);
      if constexpr (S::kInt8) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if constexpr (both) {
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        }
      } else {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (both) {
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    between();
  }
  between.rest();
  tile_memory_fence();
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kTileWords, kRow);
  if constexpr (both) {
    _tile_stored(2, sums + kLower, kRow);
    _tile_stored(3, sums + kLower + kTileWords, kRow);
  }
  tile_memory_fence();
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
