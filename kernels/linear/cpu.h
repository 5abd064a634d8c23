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

// How a level multiplies at a precision. Factors are kept in groups of one word, 4 bytes: one float, or the two
// bfloat16 or four int8 that an instruction of the level takes at once.
struct LinearShape {
  size_t group;      // Features of a word.
  size_t unit;       // Features are padded with zeros to this many words.
  size_t tile_rows;  // Rows that are computed together.
  size_t rows;       // Most rows of one call, a multiple of tile_rows.
};

// A packed weight lies block by block along the features, in each block panel by panel along the columns of y, a panel
// as [words][kLinearPanel]; columns beyond the last are zero. After it, at int8, a whole number for each column: what
// is to be taken from its sums.
constexpr size_t kLinearPanel = 32;
constexpr size_t kLinearBlock = 1024;  // Most words of a block: the rows of x at hand fit the second-level cache.
constexpr size_t kLinearChunk = 256;   // Most words of a panel's chunk: it fits the first-level cache.
constexpr size_t kLinearRows = 140;    // Most rows of one call at any level.
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
// Words of a row, padding and all.
constexpr size_t linear_words(size_t in, size_t group, size_t unit) {
  return (in + group * unit - 1) / (group * unit) * unit;
}
// Where the i-th of `parts` nearly equal parts of `size` begins.
constexpr size_t linear_cut(size_t size, size_t i, size_t parts) {
  return size * i / parts;
}
constexpr size_t linear_packed(size_t out, size_t in, LinearPrecision precision, const LinearShape& shape) {
  const size_t whole = precision == LinearPrecision::int8 ? 1 : 0;
  return linear_panels(out) * kLinearPanel * (linear_words(in, shape.group, shape.unit) + whole);
}

constexpr size_t kLinearLine = 16;  // Words of a cache line.
// Rows of x, rows on their way into their order, sums of y and of a block of a panel, and two floats of each row.
constexpr size_t kLinearTurned = 16 * kLinearBlock;
constexpr size_t kLinearScratch =
    kLinearRows * (kLinearBlock + kLinearLine) + kLinearTurned + kLinearRows * ((kLinearPanels + 1) * kLinearPanel + 2);

enum class LinearEpilogue { none, gelu, gated_residual };

struct LinearProblem {
  const float* x[2] = {};         // Parts along the features; the second may have none.
  size_t features[2] = {};        // in = their sum
  const float* weight = nullptr;  // Packed.
  const float* scale = nullptr;   // [out], at int8 alone
  const float* bias = nullptr;    // [out] or null
  LinearEpilogue epilogue = LinearEpilogue::none;
  const float* gate = nullptr;  // At the first row's; one row of it, gate_stride on, for each `tokens` rows of x.
  size_t gate_stride = 0;
  const float* residual = nullptr;
  float* y = nullptr;
  size_t rows = 0;
  size_t tokens = 0;
  size_t out = 0;
};

enum class LinearWeightType { float32, bfloat16, float16, int8 };

using LinearShapeAt = LinearShape(LinearPrecision precision);
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
