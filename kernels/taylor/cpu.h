// The maths of the Taylor family over a span of elements, compiled once per level (cpu.cpp), and the operators over it
// (cpu_op.cpp).
#pragma once

#include <cstddef>

#include "native/dispatch.h"
#include "native/operator.h"

namespace vitrify {

extern const Operator kTaylorUpdate1;
extern const Operator kTaylorUpdate2;
extern const Operator kTaylorPredict1;
extern const Operator kTaylorPredict2;

constexpr int kTaylorOrders = 2;

struct TaylorUpdateProblem {
  const float* y = nullptr;
  const float* f[kTaylorOrders] = {};  // The factors before, as many as the order.
  float inverse[kTaylorOrders] = {};
  float* g[kTaylorOrders + 1] = {};  // The factors after, one more.
};

struct TaylorPredictProblem {
  const float* f[kTaylorOrders + 1] = {};
  float ahead[kTaylorOrders] = {};
  float* y = nullptr;
};

// Elements first … last - 1.
using TaylorUpdateSpan = void(const TaylorUpdateProblem& problem, size_t first, size_t last);
using TaylorPredictSpan = void(const TaylorPredictProblem& problem, size_t first, size_t last);

VITRIFY_PER_LEVEL(taylor_update_1_span, TaylorUpdateSpan);
VITRIFY_PER_LEVEL(taylor_update_2_span, TaylorUpdateSpan);
VITRIFY_PER_LEVEL(taylor_predict_1_span, TaylorPredictSpan);
VITRIFY_PER_LEVEL(taylor_predict_2_span, TaylorPredictSpan);

}  // namespace vitrify
