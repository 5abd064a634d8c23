// The product on the tile unit. Its first factor is 16 output channels of the weight by 32 channels, its second those
// channels, in pairs, by 16 positions of x: at a tap they lie a fixed number of words on, so that no x is copied for
// it. Between the taps of a block of channels its x stays in the first-level cache.
#pragma once

#include "conv/emit.h"
#include "conv/take.h"
#include "conv/weight.h"

#if defined(__AMX_TILE__)

namespace vitrify::VITRIFY_LEVEL {
namespace {

// What a product reads: a block of channels, of all taps.
struct ConvOperands {
  const float* x;
  const float* weight;
  size_t kernel;  // A side of it.
  size_t row;     // Words of x from one row to the next,
  size_t plane;   // from one word of channels to the next,
  size_t part;    // and from one part to the next.
  size_t panel;   // Words of the weight from 16 output channels to the next.
};

// Calls body(x, weight) for each tap.
template <size_t weights, typename Body>
inline __attribute__((always_inline)) void for_taps(const ConvOperands& given, const Body& body) {
  const float* weight = given.weight;
  for (size_t dy = 0; dy < given.kernel; ++dy) {
    for (size_t dx = 0; dx < given.kernel; ++dx, weight += weights * kTileSize)
      body(given.x + dy * given.row + dx, weight);
  }
}

// sums[outs][16][16] = (add ? sums : 0) + the product of float32 in bfloat16 parts (native/split.h). weights: parts of
// the weight.
template <size_t weights, size_t outs>
void multiply_split(const ConvOperands& given, bool add, float* sums) {
  const size_t plane = given.plane * sizeof(float);
  tile_memory_fence();
  if (add) {
    _tile_loadd(0, sums, 64);
    if constexpr (outs > 1) _tile_loadd(1, sums + kTileSize, 64);
    if constexpr (outs > 2) _tile_loadd(2, sums + 2 * kTileSize, 64);
  } else {
    _tile_zero(0);
    if constexpr (outs > 1) _tile_zero(1);
    if constexpr (outs > 2) _tile_zero(2);
  }
  for_taps<weights>(given, [&](const float* x, const float* weight) __attribute__((always_inline)) {
    const auto take_weight = [&](size_t part) __attribute__((always_inline)) {
      const float* const from = weight + part * kTileSize;
      _tile_loadd(3, from, 64);
      if constexpr (outs > 1) _tile_loadd(4, from + given.panel, 64);
      if constexpr (outs > 2) _tile_loadd(5, from + 2 * given.panel, 64);
    };
    const auto multiply_6 = []() __attribute__((always_inline)) {
      _tile_dpbf16ps(0, 3, 6);
      if constexpr (outs > 1) _tile_dpbf16ps(1, 4, 6);
      if constexpr (outs > 2) _tile_dpbf16ps(2, 5, 6);
    };
    const auto multiply_7 = []() __attribute__((always_inline)) {
      _tile_dpbf16ps(0, 3, 7);
      if constexpr (outs > 1) _tile_dpbf16ps(1, 4, 7);
      if constexpr (outs > 2) _tile_dpbf16ps(2, 5, 7);
    };
    // Small products before the large one; from each to the next one factor stays.
    if constexpr (weights == kSplitParts) {
      take_weight(2);
      _tile_loadd(6, x, plane);
      multiply_6();
      take_weight(1);
      multiply_6();
      _tile_loadd(7, x + given.part, plane);
      multiply_7();
      take_weight(0);
      multiply_7();
    } else {
      take_weight(0);
      _tile_loadd(7, x + given.part, plane);
      multiply_7();
    }
    _tile_loadd(6, x + 2 * given.part, plane);
    multiply_6();
    _tile_loadd(7, x, plane);
    multiply_7();
  });
  _tile_stored(0, sums, 64);
  if constexpr (outs > 1) _tile_stored(1, sums + kTileSize, 64);
  if constexpr (outs > 2) _tile_stored(2, sums + 2 * kTileSize, 64);
  tile_memory_fence();
}

// sums[outs][16][32] = (add ? sums : 0) + the product of bfloat16.
template <size_t outs>
void multiply_bf16(const ConvOperands& given, bool add, float* sums) {
  constexpr size_t kRow = 2 * kTileWords * sizeof(float);
  const size_t plane = given.plane * sizeof(float);
  tile_memory_fence();
  if (add) {
    _tile_loadd(0, sums, kRow);
    _tile_loadd(1, sums + kTileWords, kRow);
    if constexpr (outs > 1) {
      _tile_loadd(2, sums + 2 * kTileSize, kRow);
      _tile_loadd(3, sums + 2 * kTileSize + kTileWords, kRow);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (outs > 1) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for_taps<1>(given, [&](const float* x, const float* weight) __attribute__((always_inline)) {
    _tile_loadd(4, weight, 64);
    _tile_loadd(6, x, plane);
    _tile_loadd(7, x + kTileWords, plane);
    if constexpr (outs > 1) _tile_loadd(5, weight + given.panel, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (outs > 1) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  });
  _tile_stored(0, sums, kRow);
  _tile_stored(1, sums + kTileWords, kRow);
  if constexpr (outs > 1) {
    _tile_stored(2, sums + 2 * kTileSize, kRow);
    _tile_stored(3, sums + 2 * kTileSize + kTileWords, kRow);
  }
  tile_memory_fence();
}

// As multiply_split for 16 output channels and 32 positions, on vector registers, of an x that the tile unit may not
// take for its parts: given.x are floats, a word of channels each.
inline void multiply_hostile(const ConvOperands& given, size_t weights, bool add, float* sums) {
  constexpr size_t kRegisters = 2 * kTileWords / kLanes;
  const size_t taps = given.kernel * given.kernel;
  for (size_t out = 0; out < kTileRows; ++out) {
    float* const to = sums + out * 2 * kTileWords;
    Lanes total[kRegisters];
    for (size_t i = 0; i < kRegisters; ++i)
      total[i] = add ? load(to + i * kLanes) : Lanes{};
    for (size_t tap = 0; tap < taps; ++tap) {
      const float* const x = given.x + tap / given.kernel * given.row + tap % given.kernel;
      for (size_t channel = 0; channel < kConvChannels; ++channel) {
        float factor = 0.0F;
        for (size_t part = 0; part < weights; ++part) {
          const uint32_t word =
              to_bits(given.weight[(tap * weights + part) * kTileSize + out * kTileWords + channel / 2]);
          factor += from_bits(channel % 2 != 0 ? word & 0xFFFF0000U : word << 16);
        }
        for (size_t i = 0; i < kRegisters; ++i)
          total[i] += load(x + channel * given.plane + i * kLanes) * factor;
      }
    }
    for (size_t i = 0; i < kRegisters; ++i)
      store(to + i * kLanes, total[i]);
  }
}

using MultiplyTiles = void(const ConvOperands& given, bool add, float* sums);

// The panels in groups of at most `most` that are multiplied together, run by run of positions, block by block of
// channels: a block's weights stay in the first-level cache for all positions. block_words: of x, of one block.
template <size_t most, typename MultiplyOf>
void for_groups(const ConvProblem& problem, size_t image, const ConvTile& tile, ConvOperands given, size_t block_words,
                size_t weights, size_t first_panel, size_t panels, const Runs& runs, float* sums,
                const MultiplyOf& multiply_of) {
  const size_t blocks = conv_parts(problem.in, kConvChannels);
  const float* const x = given.x;
  const float* const weight = given.weight;
  for (size_t done = 0; done < panels;) {
    const size_t outs = smaller(most, panels - done);
    const size_t panel = first_panel + done;
    for (size_t block = 0; block < blocks; ++block) {
      given.weight = weight + panel * given.panel + block * given.kernel * given.kernel * weights * kTileSize;
      for (size_t i = 0; i < runs.count(); ++i) {
        float* const run_sums = sums + i * outs * kTileRows * runs.width();
        given.x = x + block * block_words + runs.start(i);
        multiply_of(outs, given, block > 0, run_sums);
      }
    }
    emit(problem, image, tile, runs, panel * kTileRows, outs * kTileRows, sums);
    done += outs;
  }
}

template <bool split>
void tile_span(const ConvForm& form, const ConvProblem& problem, size_t image, const ConvTile& tile, size_t first_panel,
               size_t panels, float* x, float* sums, float* lines, ConvPiece* pieces) {
  constexpr ConvWords kWords = split ? ConvWords::split : ConvWords::pairs;
  const uint32_t largest = take_tile<kWords>(form, problem, image, tile, x, lines);
  const size_t row = tile.columns + problem.kernel - 1;
  const size_t plane = (tile.rows + problem.kernel - 1) * row;
  const size_t blocks = conv_parts(problem.in, kConvChannels);
  const size_t weights = form.weights;
  const ConvOperands given = {x,
                              problem.weight,
                              problem.kernel,
                              row,
                              plane,
                              blocks * kTileRows * plane,
                              blocks * problem.kernel * problem.kernel * weights * kTileSize};
  const size_t block_words = kTileRows * plane;
  const auto runs = [&](size_t run) { return Runs(tile, problem.kernel, run, problem.y_width, pieces); };
  if (split && !may_split(from_bits(largest))) {
    ConvForm floats = form;
    floats.group = 1;
    take_tile<ConvWords::floats>(floats, problem, image, tile, x, lines);
    for_groups<1>(problem, image, tile, given, 2 * block_words, weights, first_panel, panels, runs(2 * kTileWords),
                  sums,
                  [&](size_t, const ConvOperands& at, bool add, float* to) { multiply_hostile(at, weights, add, to); });
    return;
  }
  const TileRegisters registers;
  if constexpr (split) {
    static constexpr MultiplyTiles* kOf[2][3] = {{&multiply_split<1, 1>, &multiply_split<1, 2>, &multiply_split<1, 3>},
                                                 {&multiply_split<3, 1>, &multiply_split<3, 2>, &multiply_split<3, 3>}};
    MultiplyTiles* const* const of = kOf[weights > 1];
    for_groups<3>(problem, image, tile, given, block_words, weights, first_panel, panels, runs(kTileWords), sums,
                  [&](size_t outs, const ConvOperands& at, bool add, float* to) { of[outs - 1](at, add, to); });
  } else {
    static constexpr MultiplyTiles* kOf[2] = {&multiply_bf16<1>, &multiply_bf16<2>};
    for_groups<2>(problem, image, tile, given, block_words, weights, first_panel, panels, runs(2 * kTileWords), sums,
                  [](size_t outs, const ConvOperands& at, bool add, float* to) { kOf[outs - 1](at, add, to); });
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
