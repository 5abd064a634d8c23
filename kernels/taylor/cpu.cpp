// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "taylor/cpu.h"

namespace vitrify::VITRIFY_LEVEL {

void taylor_update_1_span(const TaylorUpdateProblem& problem, size_t first, size_t last) {
  const float* __restrict y = problem.y;
  const float* __restrict f0 = problem.f[0];
  float* __restrict g0 = problem.g[0];
  float* __restrict g1 = problem.g[1];
  const float inverse = problem.inverse[0];
  for (size_t i = first; i < last; ++i) {
    g0[i] = y[i];
    g1[i] = (y[i] - f0[i]) * inverse;
  }
}

void taylor_update_2_span(const TaylorUpdateProblem& problem, size_t first, size_t last) {
  const float* __restrict y = problem.y;
  const float* __restrict f0 = problem.f[0];
  const float* __restrict f1 = problem.f[1];
  float* __restrict g0 = problem.g[0];
  float* __restrict g1 = problem.g[1];
  float* __restrict g2 = problem.g[2];
  const float inverse_1 = problem.inverse[0];
  const float inverse_2 = problem.inverse[1];
  for (size_t i = first; i < last; ++i) {
    const float slope = (y[i] - f0[i]) * inverse_1;
    g0[i] = y[i];
    g1[i] = slope;
    g2[i] = (slope - f1[i]) * inverse_2;
  }
}

void taylor_predict_1_span(const TaylorPredictProblem& problem, size_t first, size_t last) {
  const float* __restrict f0 = problem.f[0];
  const float* __restrict f1 = problem.f[1];
  float* __restrict y = problem.y;
  const float ahead = problem.ahead[0];
  for (size_t i = first; i < last; ++i) {
    y[i] = f0[i] + f1[i] * ahead;
  }
}

void taylor_predict_2_span(const TaylorPredictProblem& problem, size_t first, size_t last) {
  const float* __restrict f0 = problem.f[0];
  const float* __restrict f1 = problem.f[1];
  const float* __restrict f2 = problem.f[2];
  float* __restrict y = problem.y;
  const float ahead = problem.ahead[0];
  const float ahead_of_last = problem.ahead[1];
  for (size_t i = first; i < last; ++i) {
    y[i] = f0[i] + ahead * (f1[i] + ahead_of_last * f2[i]);
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
