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

// A packed weight lies block by block along the features, in each block panel by panel along the columns of y, a panel
// as [features][kLinearPanel]; columns beyond the last are zero. One layout for all levels.
constexpr size_t kLinearPanel = 32;
constexpr size_t kLinearDepth = 256;  // Most features of a block.
// Most rows and panels of one call, and what bounds its scratch.
constexpr size_t kLinearRows = 308;
constexpr size_t kLinearPanels = 32;

constexpr size_t linear_panels(size_t out) {
  return (out + kLinearPanel - 1) / kLinearPanel;
}
constexpr size_t linear_blocks(size_t in) {
  return in <= kLinearDepth ? 1 : (in + kLinearDepth - 1) / kLinearDepth;
}
// Where the i-th of `parts` nearly equal parts of `size` begins.
constexpr size_t linear_cut(size_t size, size_t i, size_t parts) {
  return size * i / parts;
}
constexpr size_t linear_packed(size_t out, size_t in) {
  return linear_panels(out) * kLinearPanel * in;
}

// Rows of x lie in scratch at this distance: of all powers of two, only one cache line's, so that the rows of a tile
// do not compete for the same places in the cache.
constexpr size_t kLinearStride = kLinearDepth + 16;
constexpr size_t kLinearScratch = kLinearRows * (kLinearStride + kLinearPanels * kLinearPanel);

enum class LinearEpilogue { none, gelu, gated_residual };

struct LinearProblem {
  const float* x[2] = {};         // Parts along the features; the second may have none.
  size_t features[2] = {};        // in = their sum
  const float* weight = nullptr;  // Packed.
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

enum class LinearWeightType { float32, bfloat16, float16 };

// weight: [out, in], dense. packed: linear_packed(out, in) elements.
using LinearPack = void(const void* weight, LinearWeightType type, size_t out, size_t in, float* packed);
// y of `rows` ≤ kLinearRows rows and `panels` ≤ kLinearPanels panels. scratch: kLinearScratch elements, at an address
// that 64 divides. The bits of an element of y depend on its row of x, its row of the weight and `in` alone.
using LinearSpan = void(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
                        float* scratch);

VITRIFY_PER_LEVEL(linear_pack, LinearPack);
VITRIFY_PER_LEVEL(linear_span, LinearSpan);

}  // namespace vitrify
