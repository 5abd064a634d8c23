// The maths of the Conv2d family, compiled once per level (cpu.cpp), and the operators over it (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kConv2d;
extern const Operator kConv2dResidual;
extern const Operator kGroupNormSiluConv2d;
extern const Operator kGroupNormSiluConv2dResidual;
extern const Operator kUpsampleConv2d;
extern const Operator kConv2dBf16;
extern const Operator kConv2dResidualBf16;
extern const Operator kGroupNormSiluConv2dBf16;
extern const Operator kGroupNormSiluConv2dResidualBf16;
extern const Operator kUpsampleConv2dBf16;

// What the factors are rounded to before they are multiplied; sums are float32.
enum class ConvPrecision { float32, bfloat16 };

// How a level multiplies with a certain weight. Channels are kept in words of 4 bytes: one float, or two bfloat16 that
// an instruction of the level takes at once.
struct ConvForm {
  bool tiles;      // On the tile unit, or on vector registers.
  size_t group;    // Channels of a word.
  size_t parts;    // Bfloat16 parts of x, whose sum is x: 1, or on the tile unit 3 where the precision is float32.
  size_t weights;  // Those of the weight.
  size_t unit;     // Channels are padded with zeros to a multiple of this.
  size_t panel;    // Output channels that a packed weight keeps together.
};

// Sides of a square kernel that there are.
constexpr bool conv_has_kernel(size_t kernel) {
  return kernel == 1 || kernel == 3;
}

constexpr size_t conv_parts(size_t size, size_t most) {
  return (size + most - 1) / most;
}
// Words of channels, padding and all.
constexpr size_t conv_words(size_t channels, const ConvForm& form) {
  return conv_parts(channels, form.unit) * form.unit / form.group;
}
constexpr size_t conv_packed(size_t out, size_t in, size_t kernel, const ConvForm& form) {
  return conv_parts(out, form.panel) * form.panel * conv_words(in, form) * form.weights * kernel * kernel;
}

constexpr size_t kConvPanel = 16;      // Most output channels of a panel.
constexpr size_t kConvPositions = 32;  // Most positions that are computed together,
constexpr size_t kConvLeastRun = 8;    // and fewest.

// A rectangle of y, in pixels.
struct ConvTile {
  size_t row = 0;
  size_t rows = 0;
  size_t column = 0;
  size_t columns = 0;
};

struct ConvProblem {
  const float* x = nullptr;  // [batch, in, height, width]
  bool upsample = false;     // The convolution sees each pixel of x as 2 x 2.
  // Where x is normalised and goes through SiLU first, of each image and channel, else null: silu((x - mean) · factor +
  // shift).
  const float* mean = nullptr;
  const float* factor = nullptr;
  const float* shift = nullptr;
  const float* weight = nullptr;  // Packed.
  const float* bias = nullptr;
  const float* residual = nullptr;  // Like y, or null.
  float* y = nullptr;               // [batch, out, height, width], twice as high and wide as x after upsampling.
  bool past_caches = false;         // y is larger than they are.
  size_t in = 0;
  size_t out = 0;
  size_t height = 0;  // Of x,
  size_t width = 0;
  size_t y_height = 0;  // and of y.
  size_t y_width = 0;
  size_t kernel = 0;
};

// Words of scratch for a tile: x with what lies around it, sums, and lines of x on their way. A tile's last loads reach
// beyond its words.
constexpr size_t conv_x_words(const ConvTile& tile, size_t in, size_t kernel, const ConvForm& form) {
  return (tile.rows + kernel - 1) * (tile.columns + kernel - 1) * conv_words(in, form) * form.parts;
}
constexpr size_t kConvBeyond = 4 * kConvPositions;
// Of three panels at once for all of a tile's positions, in runs that are not all full.
constexpr size_t conv_sums(const ConvTile& tile, size_t kernel) {
  return 3 * kConvPanel * tile.rows * (tile.columns + kernel - 1 + kConvPositions);
}
// Positions of y that a run computes: `count` from its `at`-th on, `to` on from the tile's first.
struct ConvPiece {
  size_t run;
  size_t at;
  size_t to;
  size_t count;
};
constexpr size_t conv_pieces(const ConvTile& tile) {
  return (tile.rows * (tile.columns / kConvLeastRun + 3) + 2) / 2 * 2;  // What lies behind stays aligned.
}
constexpr size_t conv_line_words(const ConvTile& tile, size_t kernel) {
  return (tile.columns + kernel - 1 + 2 * kConvPanel) / kConvPanel * kConvPanel;
}
constexpr size_t conv_scratch(const ConvTile& tile, size_t in, size_t kernel, const ConvForm& form) {
  const size_t x = (conv_x_words(tile, in, kernel, form) + kConvBeyond + kConvPanel - 1) / kConvPanel * kConvPanel;
  return x + conv_pieces(tile) * sizeof(ConvPiece) / sizeof(float) + conv_sums(tile, kernel) +
         2 * conv_line_words(tile, kernel);
}

struct GroupMoments {
  double mean;
  double variance;
};

// weight: [out, in, kernel, kernel], dense, as the checkpoint has it: float32, bfloat16 or float16.
using ConvFormOf = ConvForm(ConvPrecision precision, const void* weight, DType type, size_t count);
// packed: conv_packed words, of the level's own.
using ConvPack = void(const ConvForm& form, ConvPrecision precision, const void* weight, DType type, size_t out,
                      size_t in, size_t kernel, float* packed);
using ConvMoments = GroupMoments(const float* x, size_t count);
// A tile of y of one image, `panels` panels of output channels. scratch: conv_scratch words, at an address that 64
// divides. The bits of an element of y depend on the values it is made of alone, in float32 on the tile unit also on
// whether its tile's x may be split.
using ConvSpan = void(const ConvForm& form, ConvPrecision precision, const ConvProblem& problem, size_t image,
                      const ConvTile& tile, size_t first_panel, size_t panels, float* scratch);

VITRIFY_PER_LEVEL(conv_form, ConvFormOf);
VITRIFY_PER_LEVEL(conv_pack, ConvPack);
VITRIFY_PER_LEVEL(conv_moments, ConvMoments);
VITRIFY_PER_LEVEL(conv_span, ConvSpan);

}  // namespace vitrify
