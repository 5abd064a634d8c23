// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "gated_residual/cpu.h"

namespace vitrify::VITRIFY_LEVEL {

void gated_residual_row(const float* __restrict x, const float* __restrict y, const float* __restrict gate,
                        float* __restrict out, size_t width) {
  for (size_t i = 0; i < width; ++i) {
    out[i] = x[i] + gate[i] * y[i];
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
