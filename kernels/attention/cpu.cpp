// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
//
// Flash-attention for a cache hierarchy: a chunk of queries meets the keys block by block; the block's scores, the
// running maximum and sum of each row and the unscaled output never leave the second-level cache (README.md).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics.
#endif

#include "attention/cpu.h"

#if defined(__AMX_TILE__)
#include "attention/tile_kernel.h"
#else
#include "attention/lane_kernel.h"
#endif

namespace vitrify::VITRIFY_LEVEL {

AttentionShape attention_shape(AttentionPrecision precision, size_t keys, size_t head_dim) {
  return precision == AttentionPrecision::float32 ? shape_of<AttentionPrecision::float32>(keys, head_dim)
                                                  : shape_of<AttentionPrecision::bfloat16>(keys, head_dim);
}

void attention_pack(AttentionPrecision precision, const AttentionHead& head, size_t first, size_t last,
                    float* scratch) {
  precision == AttentionPrecision::float32 ? pack<AttentionPrecision::float32>(head, first, last, scratch)
                                           : pack<AttentionPrecision::bfloat16>(head, first, last, scratch);
}

void attention_rows(AttentionPrecision precision, const AttentionHead& head, size_t first, float* scratch) {
  precision == AttentionPrecision::float32 ? compute_rows<AttentionPrecision::float32>(head, first, scratch)
                                           : compute_rows<AttentionPrecision::bfloat16>(head, first, scratch);
}

}  // namespace vitrify::VITRIFY_LEVEL
