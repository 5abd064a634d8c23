// Memory that was read once and is not needed soon.
#pragma once

#include <cstddef>

namespace vitrify {

// Lets the system take the whole pages of this memory away; what is read there later is what was there. Pages of a
// mapped file leave the process at once, others only where there is swap.
void give_back_pages(const void* data, size_t bytes);

}  // namespace vitrify
