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
constexpr size_t kLinearBlock = 1024;  // Most features of a block: the rows of x at hand fit the second-level cache.
constexpr size_t kLinearChunk = 256;   // Most features of a panel's chunk: it fits the first-level cache.
constexpr size_t kLinearRows = 140;    // Most rows of one call.
// Most panels of one call where there are several blocks: y's sums wait in scratch from block to block.
constexpr size_t kLinearPanels = 32;

constexpr size_t linear_parts(size_t size, size_t most) {
  return size <= most ? 1 : (size + most - 1) / most;
}
constexpr size_t linear_panels(size_t out) {
  return (out + kLinearPanel - 1) / kLinearPanel;
}
constexpr size_t linear_blocks(size_t in) {
  return linear_parts(in, kLinearBlock);
}
// Where the i-th of `parts` nearly equal parts of `size` begins.
constexpr size_t linear_cut(size_t size, size_t i, size_t parts) {
  return size * i / parts;
}
constexpr size_t linear_packed(size_t out, size_t in) {
  return linear_panels(out) * kLinearPanel * in;
}

constexpr size_t kLinearScratch = kLinearRows * (kLinearBlock + kLinearPanels * kLinearPanel) + 16;

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
// y of `rows` ≤ kLinearRows rows and `panels` panels. scratch: kLinearScratch elements, at an address that 64 divides.
// The bits of an element of y depend on its row of x, its row of the weight and `in` alone.
using LinearSpan = void(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
                        float* scratch);

VITRIFY_PER_LEVEL(linear_pack, LinearPack);
VITRIFY_PER_LEVEL(linear_span, LinearSpan);

}  // namespace vitrify
