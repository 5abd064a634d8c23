// The maths of AdaLayerNorm and AdaRMSNorm over some rows, compiled once per level (cpu.cpp), and the operators over it
// (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kAdaLayerNorm;
extern const Operator kAdaRMSNorm;

struct AdaNormProblem {
  const float* x = nullptr;  // [batch · tokens, width]
  // At the first row of the batch; one row of the table, `columns` on, for each `tokens` rows of x.
  const float* factor = nullptr;
  const float* shift = nullptr;
  float* y = nullptr;
  size_t tokens = 0;
  size_t width = 0;
  size_t columns = 0;
  float epsilon = 0;
};

// Rows first … last - 1 of y. The bits of a row depend on that row of x and its factors and shifts alone.
using AdaNormSpan = void(const AdaNormProblem& problem, size_t first, size_t last);

VITRIFY_PER_LEVEL(ada_layer_norm_span, AdaNormSpan);
VITRIFY_PER_LEVEL(ada_rms_norm_span, AdaNormSpan);

}  // namespace vitrify
