// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "residual_diff/cpu.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Element i is added into lane i mod 32, on every level. A lane takes 64 additions in float32, then goes over
// into float64: the rounding error of a sum stays near 1e-7 however long it is.
constexpr size_t kLanes = 32;
constexpr size_t kBlock = 64 * kLanes;

struct Lanes {
  float moved[kLanes];
  float size[kLanes];
};

inline float magnitude(float x) {
  return __builtin_fabsf(x);
}

inline void add(Lanes& lanes, size_t lane, const float* h1, const float* h0, const float* r_ref, float* r, size_t i) {
  const float difference = h1[i] - h0[i];
  const float reference = r_ref[i];
  r[i] = difference;
  lanes.moved[lane] += magnitude(difference - reference);
  lanes.size[lane] += magnitude(reference);
}

}  // namespace

void residual_diff_span(const float* __restrict h1, const float* __restrict h0, const float* __restrict r_ref,
                        float* __restrict r, size_t count, double sums[2]) {
  double moved[kLanes] = {};
  double size[kLanes] = {};
  for (size_t start = 0; start < count; start += kBlock) {
    const size_t stop = count - start < kBlock ? count : start + kBlock;
    Lanes lanes = {};
    size_t i = start;
    for (; i + kLanes <= stop; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        add(lanes, lane, h1, h0, r_ref, r, i + lane);
      }
    }
    for (size_t lane = 0; i < stop; ++i, ++lane) {
      add(lanes, lane, h1, h0, r_ref, r, i);
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      moved[lane] += static_cast<double>(lanes.moved[lane]);
      size[lane] += static_cast<double>(lanes.size[lane]);
    }
  }
  sums[0] = sums[1] = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    sums[0] += moved[lane];
    sums[1] += size[lane];
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
