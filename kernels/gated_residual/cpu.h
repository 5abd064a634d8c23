// The maths of GatedResidual over one row, compiled once per level (cpu.cpp), and the operator over it (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kGatedResidual;

// out = x + gate · y, all [width]; out overlaps none of them.
using GatedResidualRow = void(const float* x, const float* y, const float* gate, float* out, size_t width);

VITRIFY_PER_LEVEL(gated_residual_row, GatedResidualRow);

}  // namespace vitrify
