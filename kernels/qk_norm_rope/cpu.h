// The maths of QkNormRope over one token, compiled once per level (cpu.cpp), and the operator over it (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kQkNormRope;

struct QkNormRopeTables {
  const float* norm = nullptr;  // [2 · half]
  const float* cos = nullptr;   // [tokens, half]
  const float* sin = nullptr;
  size_t heads = 0;
  size_t half = 0;  // Of head_dim.
  float epsilon = 0;
};

// All heads of a token: x and y [heads · 2 · half], not overlapping; `token` is its row of the tables.
using QkNormRopeToken = void(const QkNormRopeTables& tables, const float* x, size_t token, float* y);

VITRIFY_PER_LEVEL(qk_norm_rope_token, QkNormRopeToken);

}  // namespace vitrify
