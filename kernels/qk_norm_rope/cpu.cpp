// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "qk_norm_rope/cpu.h"

#include "qk_norm_rope/row.h"

namespace vitrify::VITRIFY_LEVEL {

void qk_norm_rope_token(const QkNormRopeTables& tables, const float* x, size_t token, float* y) {
  const float* cos = tables.cos + token * tables.half;
  const float* sin = tables.sin + token * tables.half;
  for (size_t head = 0; head < tables.heads; ++head) {
    const size_t at = head * 2 * tables.half;
    norm_rope_row(x + at, tables.norm, cos, sin, tables.half, tables.epsilon, 1.0F, y + at);
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
