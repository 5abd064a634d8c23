// The product on vector registers, blocked as Goto and van de Geijn do it (README.md): a block of x lies in the
// second-level cache, a panel of the weight in the first, a tile of y in registers.
#pragma once

#include "linear/finish.h"
#include "linear/gather.h"
#include "linear/product.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// A tile's words first … last - 1 of x, as the product reads them: word by word.
template <LinearPrecision precision>
void gather(const LinearProblem& problem, size_t first_row, size_t rows, size_t first, size_t last,
            const float* inverses, float* turned, float* x) {
  using A = Arithmetic<precision>;
  const size_t depth = last - first;
  if constexpr (A::kFloat) {
    for_parts(problem, first_row, first, last, [&](const float* from, size_t features, size_t count) {
      turn_rows(from, features, rows, count, x);
      x += count * rows;
    });
  } else {
    for (size_t i = 0; i < rows; ++i) {
      const float inverse = A::kInt8 ? inverses[i] : 1.0F;
      narrow_row<precision>(problem, first_row + i, first, last, inverse, turned + i * depth);
    }
    turn_rows(turned, depth, rows, depth, x);
  }
}

// The product on vector registers. halves: the weight is kept as the tile unit wants it, in bfloat16.
template <LinearPrecision precision, bool halves>
void vector_span(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
                 float* scratch) {
  using A = Arithmetic<precision>;
  constexpr size_t kPanel = kLinearPanel;
  constexpr size_t kStep = A::kFloat && kHasTiles ? kTileFeatures : 1;  // Words: the weight is cut between steps.
  constexpr size_t kHalf = halves ? 2 : 1;
  constexpr LinearSums kSums = A::kOffset ? LinearSums::offset : A::kInt8 ? LinearSums::whole : LinearSums::floats;
  float* const x = scratch;
  float* const turned = x + kLinearRows * kLinearBlock;
  float* const sums = turned + kLinearTurned;
  float* const block_sums = sums + kLinearRows * kLinearPanels * kPanel;
  float* const scales = block_sums + kLinearRows * kPanel;
  float* const inverses = scales + kLinearRows;
  if constexpr (A::kInt8) {
    for (size_t i = 0; i < rows; ++i) {
      const float most = largest(problem, first_row + i);
      scales[i] = most / 127;
      inverses[i] = 127.0F / most;
    }
  }
  const size_t words = (problem.features[0] + problem.features[1] + A::kGroup - 1) / A::kGroup;
  const size_t steps = (words + kStep - 1) / kStep;
  const size_t panel_words = steps * kStep / kHalf * kPanel;
  const float* const offsets = problem.weight + linear_panels(problem.out) * panel_words;
  const size_t blocks = linear_parts(steps, kLinearBlock / kStep);
  const size_t tiles = linear_parts(rows, A::kTileRows);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t first_step = linear_cut(steps, block, blocks);
    const size_t block_steps = linear_cut(steps, block + 1, blocks) - first_step;
    const size_t first = first_step * kStep;
    const size_t depth = smaller(first + block_steps * kStep, words) - first;
    for (size_t tile = 0; tile < tiles; ++tile) {
      const size_t start = linear_cut(rows, tile, tiles);
      gather<precision>(problem, first_row + start, linear_cut(rows, tile + 1, tiles) - start, first, first + depth,
                        inverses + start, turned, x + start * depth);
    }
    const size_t chunks = linear_parts(block_steps, kLinearChunk / kStep);
    const auto chunk_start = [&](size_t chunk) {
      return smaller(linear_cut(block_steps, chunk, chunks) * kStep, depth);
    };
    const float* weight = problem.weight + first_panel * panel_words + first / kHalf * kPanel;
    for (size_t panel = 0; panel < panels; ++panel, weight += panel_words) {
      float* const panel_sums = sums + (blocks > 1 ? panel * rows * kPanel : 0);
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        const size_t skip = chunk_start(chunk);
        const size_t count = chunk_start(chunk + 1) - skip;
        const float* const at = weight + skip / kHalf * kPanel;
        const bool last_of_block = chunk + 1 == chunks;
        const float* const next = last_of_block ? weight + panel_words : at + count / kHalf * kPanel;
        const bool add = A::kBlockSums ? chunk > 0 : block + chunk > 0;
        const bool last = last_of_block && block + 1 == blocks;
        for (size_t tile = 0; tile < tiles; ++tile) {
          const size_t start = linear_cut(rows, tile, tiles);
          const size_t tile_rows = linear_cut(rows, tile + 1, tiles) - start;
          float* const y_sums = panel_sums + start * kPanel;
          float* const tile_sums = A::kBlockSums ? block_sums + start * kPanel : y_sums;
          const size_t row = first_row + start;
          if (last) fetch_tile(problem, row, tile_rows, first_panel + panel);
          // The first tiles fetch the next chunk of the weight, the others what is there.
          const size_t fetched = tile * (count / kLineEach) * kLinearLine;
          const float* ahead = fetched < count / kHalf * kPanel ? next + fetched : tile_sums;
          multiply_of<precision, halves>(tile_rows)(x + start * depth + skip * tile_rows, at, count, add, tile_sums,
                                                    ahead);
          if (A::kBlockSums && last_of_block) add_whole(tile_sums, tile_rows * kPanel, block > 0, y_sums);
          for (size_t i = 0; last && i < tile_rows; ++i) {
            finish_row<kSums>(problem, row + i, first_panel + panel, y_sums + i * kPanel, nullptr, offsets,
                              A::kInt8 ? scales[start + i] : 1.0F);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
