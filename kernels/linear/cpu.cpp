// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
//
// Blocked as Goto and van de Geijn do it (README.md): a block of x lies in the second-level cache, a panel of the
// weight in the first, a tile of y in registers.
#include "linear/cpu.h"

#include "linear/arithmetic.h"
#include "linear/finish.h"
#include "linear/gather.h"
#include "linear/pack.h"
#include "linear/product.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// The rows of one call, cut into tiles.
template <LinearPrecision precision>
struct Tiles {
  using A = Arithmetic<precision>;
  size_t rows;
  size_t count;  // Of tiles.

  explicit Tiles(size_t all_rows) : rows(all_rows), count((all_rows + A::kTileRows - 1) / A::kTileRows) {}
  // Tiles of registers take any number of rows, nearly the same for all; those of the tile unit are whole but the last.
  size_t start(size_t tile) const {
    return A::kTiled ? smaller(tile * A::kTileRows, rows) : linear_cut(rows, tile, count);
  }
  size_t rows_of(size_t tile) const { return start(tile + 1) - start(tile); }
  // Rows of sums: the tile unit writes whole tiles.
  size_t sum_rows() const { return A::kTiled ? count * A::kTileRows : rows; }
};

// A tile's words first … last - 1 of x, as the product reads them: row by row for the tile unit, else word by word.
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
    float* const to = A::kTiled ? x : turned;
    const size_t stride = A::kTiled ? depth + kLinearLine : depth;
    for (size_t i = 0; i < rows; ++i) {
      const float inverse = A::kInt8 ? inverses[i] : 1.0F;
      narrow_row<precision>(problem, first_row + i, first, last, inverse, to + i * stride);
    }
    if constexpr (!A::kTiled) turn_rows(turned, depth, rows, depth, x);
  }
}

template <LinearPrecision precision>
void span(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
          float* scratch) {
  using A = Arithmetic<precision>;
  constexpr size_t kPanel = kLinearPanel;
  constexpr size_t kUnit = A::kShape.unit;
  float* const x = scratch;
  float* const turned = x + kLinearRows * (kLinearBlock + kLinearLine);
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
  [[maybe_unused]] const TileRegisters<A::kTiled> registers;
  const size_t words = linear_words(problem.features[0] + problem.features[1], A::kGroup, kUnit);
  const size_t blocks = linear_parts(words, kLinearBlock);
  const float* const offsets = problem.weight + words * linear_panels(problem.out) * kPanel;
  const Tiles<precision> tiles(rows);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t first = linear_cut(words / kUnit, block, blocks) * kUnit;
    const size_t depth = linear_cut(words / kUnit, block + 1, blocks) * kUnit - first;
    const size_t stride = A::kTiled ? depth + kLinearLine : depth;  // Words of a row of x.
    for (size_t tile = 0; tile < tiles.count; ++tile) {
      const size_t start = tiles.start(tile);
      gather<precision>(problem, first_row + start, tiles.rows_of(tile), first, first + depth, inverses + start, turned,
                        x + start * stride);
    }
    const size_t chunks = linear_parts(depth, kLinearChunk);
    const float* weight = problem.weight + (first * linear_panels(problem.out) + first_panel * depth) * kPanel;
    for (size_t panel = 0; panel < panels; ++panel) {
      float* const panel_sums = sums + (blocks > 1 ? panel * tiles.sum_rows() * kPanel : 0);
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        const size_t skip = linear_cut(depth / kUnit, chunk, chunks) * kUnit;
        const size_t count = linear_cut(depth / kUnit, chunk + 1, chunks) * kUnit - skip;
        const float* const next = weight + count * kPanel;
        const bool add = A::kBlockSums ? chunk > 0 : block + chunk > 0;
        const bool last_of_block = chunk + 1 == chunks;
        const bool last = last_of_block && block + 1 == blocks;
        for (size_t tile = 0; tile < tiles.count; ++tile) {
          const size_t start = tiles.start(tile);
          const size_t tile_rows = tiles.rows_of(tile);
          float* const y_sums = panel_sums + start * kPanel;
          float* const tile_sums = A::kBlockSums ? block_sums + start * kPanel : y_sums;
          const size_t row = first_row + start;
          if (last) fetch_tile(problem, row, tile_rows, first_panel + panel);
          if constexpr (A::kTiled) {
#if defined(__AMX_TILE__)
            // Each tile fetches its share of the weight's next chunk.
            const size_t lines = count * kPanel / kLinearLine;
            const size_t line = linear_cut(lines, tile, tiles.count);
            const auto multiply = tile_rows > 16 ? &multiply_tiles<precision, true> : &multiply_tiles<precision, false>;
            multiply(x + start * stride + skip, stride, weight, count, add, tile_sums, next + line * kLinearLine,
                     linear_cut(lines, tile + 1, tiles.count) - line);
#endif
          } else {
            // The first tiles fetch the next chunk of the weight, the others what is there.
            const size_t fetched = tile * (count / kLineEach) * kLinearLine;
            const float* ahead = fetched < count * kPanel ? next + fetched : tile_sums;
            multiply_of<precision>(tile_rows)(x + start * depth + skip * tile_rows, weight, count, add, tile_sums,
                                              ahead);
          }
          if (A::kBlockSums && last_of_block) add_whole(tile_sums, tile_rows * kPanel, block > 0, y_sums);
          if (last) {
            finish_tile<precision>(problem, row, tile_rows, first_panel + panel, y_sums, offsets, scales + start);
          }
        }
        weight = next;
      }
    }
  }
}

template <LinearPrecision precision>
void pack_floats(const void* weight, LinearWeightType type, size_t out, size_t in, float* packed) {
  switch (type) {
    case LinearWeightType::float32:
      return pack<precision>(static_cast<const float*>(weight), out, in, packed);
    case LinearWeightType::bfloat16:
      return pack<precision>(static_cast<const BFloat16*>(weight), out, in, packed);
    case LinearWeightType::float16:
      return pack<precision>(static_cast<const Float16*>(weight), out, in, packed);
    case LinearWeightType::int8:
      return;  // Of LinearPrecision::int8 alone.
  }
}

}  // namespace

LinearShape linear_shape(LinearPrecision precision) {
  switch (precision) {
    case LinearPrecision::float32:
      break;
    case LinearPrecision::bfloat16:
      return Arithmetic<LinearPrecision::bfloat16>::kShape;
    case LinearPrecision::int8:
      return Arithmetic<LinearPrecision::int8>::kShape;
  }
  return Arithmetic<LinearPrecision::float32>::kShape;
}

void linear_pack(LinearPrecision precision, const void* weight, LinearWeightType type, size_t out, size_t in,
                 float* packed) {
  switch (precision) {
    case LinearPrecision::float32:
      return pack_floats<LinearPrecision::float32>(weight, type, out, in, packed);
    case LinearPrecision::bfloat16:
      return pack_floats<LinearPrecision::bfloat16>(weight, type, out, in, packed);
    case LinearPrecision::int8:
      return pack<LinearPrecision::int8>(static_cast<const int8_t*>(weight), out, in, packed);
  }
}

void linear_span(LinearPrecision precision, const LinearProblem& problem, size_t first_row, size_t rows,
                 size_t first_panel, size_t panels, float* scratch) {
  switch (precision) {
    case LinearPrecision::float32:
      return span<LinearPrecision::float32>(problem, first_row, rows, first_panel, panels, scratch);
    case LinearPrecision::bfloat16:
      return span<LinearPrecision::bfloat16>(problem, first_row, rows, first_panel, panels, scratch);
    case LinearPrecision::int8:
      return span<LinearPrecision::int8>(problem, first_row, rows, first_panel, panels, scratch);
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
