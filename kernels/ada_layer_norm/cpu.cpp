// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "ada_layer_norm/cpu.h"

#include "native/lanes.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Additions in flight at once: each waits for the one before it in its chain alone.
constexpr size_t kChains = 4;

struct Moments {
  float mean;
  float mean_square;
};

inline Lanes total(const Lanes (&chains)[kChains]) {
  return (chains[0] + chains[1]) + (chains[2] + chains[3]);
}

// Of x[i] - centre over the row.
inline Moments moments(const float* x, size_t width, float centre) {
  Lanes sums[kChains] = {};
  Lanes squares[kChains] = {};
  size_t i = 0;
  for (; i + kChains * kLanes <= width; i += kChains * kLanes) {
#pragma GCC unroll 4
    for (size_t chain = 0; chain < kChains; ++chain) {
      const Lanes value = load(x + i + chain * kLanes) - centre;
      sums[chain] += value;
      squares[chain] += value * value;
    }
  }
  for (; i + kLanes <= width; i += kLanes) {
    const Lanes value = load(x + i) - centre;
    sums[0] += value;
    squares[0] += value * value;
  }
  float mean = sum(total(sums));
  float mean_square = sum(total(squares));
  for (; i < width; ++i) {
    const float value = x[i] - centre;
    mean += value;
    mean_square += value * value;
  }
  const float count = static_cast<float>(width);
  return {mean / count, mean_square / count};
}

// y = ((x - centre) - rest) · inverse · factor + shift
inline void write(const float* x, const float* factor, const float* shift, size_t width, float centre, float rest,
                  float inverse, float* y) {
  size_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store(y + i, (load(x + i) - centre - rest) * inverse * load(factor + i) + load(shift + i));
  }
  for (; i < width; ++i) {
    y[i] = (x[i] - centre - rest) * inverse * factor[i] + shift[i];
  }
}

template <bool centred>
inline void span(const AdaNormProblem& problem, size_t first, size_t last) {
  const size_t width = problem.width;
  for (size_t row = first; row < last; ++row) {
    const float* x = problem.x + row * width;
    const size_t at = row / problem.tokens * problem.columns;
    // The mean's own rounding is as large as a large mean makes it: what is left of it is measured and taken off.
    const float centre = centred ? moments(x, width, 0.0F).mean : 0.0F;
    const Moments around = moments(x, width, centre);
    const float rest = centred ? around.mean : 0.0F;
    const float inverse = 1.0F / __builtin_sqrtf(around.mean_square - rest * rest + problem.epsilon);
    write(x, problem.factor + at, problem.shift + at, width, centre, rest, inverse, problem.y + row * width);
  }
}

}  // namespace

void ada_layer_norm_span(const AdaNormProblem& problem, size_t first, size_t last) {
  span<true>(problem, first, last);
}

void ada_rms_norm_span(const AdaNormProblem& problem, size_t first, size_t last) {
  span<false>(problem, first, last);
}

}  // namespace vitrify::VITRIFY_LEVEL
