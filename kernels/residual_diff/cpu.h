// The span kernel of ResidualDiff, compiled once per level (cpu.cpp), and the operator over it (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kResidualDiff;

// Over `count` elements: r = h1 - h0, sums[0] = Σ|r - r_ref|, sums[1] = Σ|r_ref|.
// The order of the additions depends on `count` alone: every level gives the same bits.
using ResidualDiffSpan = void(const float* h1, const float* h0, const float* r_ref, float* r, size_t count,
                              double sums[2]);

VITRIFY_PER_LEVEL(residual_diff_span, ResidualDiffSpan);

}  // namespace vitrify
