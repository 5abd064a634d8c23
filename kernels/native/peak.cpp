// Compiled once per level.
#include "native/peak.h"

#include "native/lanes.h"

namespace vitrify::VITRIFY_LEVEL {

double multiply_add_loop(size_t rounds, float* sink) {
  constexpr size_t kInFlight = 12;  // At least latency × units, and no more than fit the smallest register file.
  Lanes values[kInFlight];
#pragma GCC unroll 16
  for (size_t i = 0; i < kInFlight; ++i) {
    values[i] = all(static_cast<float>(i));  // Each another value, or one chain would do for all.
  }
  Lanes factor = all(0.5F);
  Lanes term = all(1.0F);
  for (size_t round = 0; round < rounds; ++round) {
    // Unknown to the compiler, so that it can neither work out nor reorder the loop.
    __asm__ volatile("" : "+x"(factor), "+x"(term));
#pragma GCC unroll 16
    for (size_t i = 0; i < kInFlight; ++i) {
      values[i] = values[i] * factor + term;
    }
  }
  Lanes total = {};
  for (size_t i = 0; i < kInFlight; ++i) {
    total += values[i];
  }
  *sink = sum(total);
  return 2.0 * kInFlight * kLanes * static_cast<double>(rounds);
}

}  // namespace vitrify::VITRIFY_LEVEL
