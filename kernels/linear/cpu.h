// The maths of the Linear family, compiled once per level (cpu.cpp), and the operators over it (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kLinear;
extern const Operator kLinearNoBias;
extern const Operator kLinearGelu;
extern const Operator kLinearGatedResidual;
extern const Operator kLinear2GatedResidual;
extern const Operator kLinearBf16;
extern const Operator kLinearNoBiasBf16;
extern const Operator kLinearGeluBf16;
extern const Operator kLinearGatedResidualBf16;
extern const Operator kLinear2GatedResidualBf16;
extern const Operator kLinearInt8;
extern const Operator kLinearNoBiasInt8;
extern const Operator kLinearGeluInt8;
extern const Operator kLinearGatedResidualInt8;
extern const Operator kLinear2GatedResidualInt8;

// What the factors are rounded to before they are multiplied; sums are float32, of int8 whole numbers.
enum class LinearPrecision { float32, bfloat16, int8 };

enum class LinearWeightType { float32, bfloat16, float16, int8 };

// How a level multiplies. Factors are kept in groups of one word, 4 bytes: one float, or two bfloat16 or four int8 that
// an instruction of the level takes at once.
struct LinearShape {
  size_t group;        // Features of a word of the weight.
  size_t unit;         // Features are padded with zeros to a multiple of this.
  size_t tile_rows;    // Rows that are computed together.
  size_t rows;         // Most rows of one call, a multiple of tile_rows.
  size_t panels;       // Most panels of one call.
  size_t least_tiles;  // Fewer are not worth a call of their own, if there are other ways to share the work.
};

// A packed weight lies panel by panel along the columns of y, a panel as [words][kLinearPanel]; columns beyond the last
// are zero. After it a word for each column: at int8 what is to be taken from its sums, at float32 what the level
// wants.
constexpr size_t kLinearPanel = 32;
constexpr size_t kLinearBlock = 1024;  // Most words of a block: the rows of x at hand fit the second-level cache.
constexpr size_t kLinearChunk = 256;   // Most words of a panel's chunk: it fits the first-level cache.
constexpr size_t kLinearRows = 140;    // Most rows of one call, of tiles in vector registers.
// Most panels of one call where there are several blocks: y's sums wait in scratch from block to block.
constexpr size_t kLinearPanels = 32;
// Most features at int8, so that no sum of products, each at most 127 · 128, leaves 32 bits.
constexpr size_t kLinearInt8Features = 1 << 17;

constexpr size_t linear_parts(size_t size, size_t most) {
  return size <= most ? 1 : (size + most - 1) / most;
}
constexpr size_t linear_panels(size_t out) {
  return (out + kLinearPanel - 1) / kLinearPanel;
}
// Words of a row of the weight, padding and all.
constexpr size_t linear_words(size_t in, const LinearShape& shape) {
  return (in + shape.unit - 1) / shape.unit * shape.unit / shape.group;
}
// Where the i-th of `parts` nearly equal parts of `size` begins.
constexpr size_t linear_cut(size_t size, size_t i, size_t parts) {
  return size * i / parts;
}
constexpr size_t linear_packed(size_t out, size_t in, const LinearShape& shape) {
  return linear_panels(out) * kLinearPanel * (linear_words(in, shape) + 1);
}

constexpr size_t kLinearLine = 16;  // Words of a cache line.

// Tiles in vector registers need for their scratch: rows of x, rows on their way into their order, sums of y and of a
// block of a panel, and two floats of each row.
constexpr size_t kLinearTurned = 16 * kLinearBlock;
constexpr size_t kLinearVectorScratch =
    kLinearRows * kLinearBlock + kLinearTurned + kLinearRows * ((kLinearPanels + 1) * kLinearPanel + 2);

// Those of the tile unit: rows of x, a tile's sums, two chunks of a panel in parts, sums of y.
constexpr size_t kLinearTile = 32;       // Rows.
constexpr size_t kLinearTileRows = 576;  // Most of one call.
constexpr size_t kLinearTileX = (5 << 20) / 4 / sizeof(float);
constexpr size_t kLinearTileChunk = 8 * 3 * 16 * kLinearPanel;
constexpr size_t kLinearTileSums = kLinearTileRows * 16 * kLinearPanel;
constexpr size_t kLinearTileScratch =
    kLinearTileX + kLinearTile * kLinearPanel + 2 * kLinearTileChunk + kLinearTileSums;

constexpr size_t kLinearScratch = kLinearVectorScratch < kLinearTileScratch ? kLinearTileScratch : kLinearVectorScratch;

enum class LinearEpilogue { none, gelu, gated_residual };

struct LinearProblem {
  const float* x[2] = {};         // Parts along the features; the second may have none.
  size_t features[2] = {};        // in = their sum
  const float* weight = nullptr;  // Packed.
  LinearWeightType weight_type = LinearWeightType::float32;
  const float* scale = nullptr;  // [out], at int8 alone
  const float* bias = nullptr;   // [out] or null
  LinearEpilogue epilogue = LinearEpilogue::none;
  const float* gate = nullptr;  // At the first row's; one row of it, gate_stride on, for each `tokens` rows of x.
  size_t gate_stride = 0;
  const float* residual = nullptr;
  float* y = nullptr;
  bool past_caches = false;  // y is larger than they are.
  size_t rows = 0;
  size_t tokens = 0;
  size_t out = 0;
};

// weight and its type as the checkpoint has it. The weight's order depends on precision and type alone.
using LinearShapeAt = LinearShape(LinearPrecision precision, LinearWeightType type, size_t in, size_t tokens);
// weight: [out, in], dense. packed: linear_packed words, of the level's own.
using LinearPack = void(LinearPrecision precision, const void* weight, LinearWeightType type, size_t out, size_t in,
                        float* packed);
// y of `rows` rows, at most the shape's, and `panels` panels. scratch: kLinearScratch words, at an address that 64
// divides. The bits of an element of y depend on its row of x, its row of the weight and `in` alone.
using LinearSpan = void(LinearPrecision precision, const LinearProblem& problem, size_t first_row, size_t rows,
                        size_t first_panel, size_t panels, float* scratch);

VITRIFY_PER_LEVEL(linear_shape, LinearShapeAt);
VITRIFY_PER_LEVEL(linear_pack, LinearPack);
VITRIFY_PER_LEVEL(linear_span, LinearSpan);

}  // namespace vitrify
