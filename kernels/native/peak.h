// What this machine's multiply-add units can do at most: the limit that `vitrify bench ops` sets beside its figures.
#pragma once

#include <cstddef>

#include "native/dispatch.h"

namespace vitrify {

// `rounds` times the same multiply-adds on registers alone, enough of them in flight to keep all units busy. Returns
// the floating-point operations done, two for each multiply-add; *sink gets a value that depends on all of them.
using MultiplyAddLoop = double(size_t rounds, float* sink);

VITRIFY_PER_LEVEL(multiply_add_loop, MultiplyAddLoop);

}  // namespace vitrify
