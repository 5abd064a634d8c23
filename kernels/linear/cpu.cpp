// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "linear/cpu.h"

#include "linear/pack.h"
#include "linear/tile_span.h"
#include "linear/vector_span.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

constexpr LinearPrecision kFloat32 = LinearPrecision::float32;
constexpr LinearPrecision kBf16 = LinearPrecision::bfloat16;
constexpr LinearPrecision kInt8 = LinearPrecision::int8;

// Fewer tokens than this are multiplied as float32 on vector registers: where the weight is read for so little,
// splitting it costs more than the unit saves. Of the tokens, not of all rows: a sample gives the same bits in every
// batch.
constexpr size_t kSplitTokens = 16;

template <LinearPrecision precision, typename T>
void pack_as(const T* weight, size_t out, size_t in, size_t words, float* packed) {
  using A = Arithmetic<precision>;
  const auto nothing = [](const T*, size_t) { return 0.0F; };
  if constexpr (kHasTiles && precision == kFloat32) {
    const auto flag = [](const T* row, size_t count) { return hostile(row, count) ? 1.0F : 0.0F; };
    constexpr bool kHalves = sizeof(T) == sizeof(BFloat16) && !__is_same(T, Float16);
    pack<kHalves ? 2 : 1, kHalves ? kTileFeatures / 2 : 1, false>(weight, out, in, words, flag, packed);
  } else if constexpr (kHasTiles && precision == kBf16) {
    pack<2, kTileFeatures / 2, true>(weight, out, in, words, nothing, packed);
  } else if constexpr (A::kOffset && !kHasTiles) {
    pack<A::kGroup, 1, false>(weight, out, in, words, offset_of, packed);
  } else {
    pack<A::kGroup, 1, precision == kBf16>(weight, out, in, words, nothing, packed);
  }
}

template <LinearPrecision precision>
void pack_floats(const void* weight, LinearWeightType type, size_t out, size_t in, size_t words, float* packed) {
  switch (type) {
    case LinearWeightType::float32:
      return pack_as<precision>(static_cast<const float*>(weight), out, in, words, packed);
    case LinearWeightType::bfloat16:
      return pack_as<precision>(static_cast<const BFloat16*>(weight), out, in, words, packed);
    case LinearWeightType::float16:
      return pack_as<precision>(static_cast<const Float16*>(weight), out, in, words, packed);
    case LinearWeightType::int8:
      return;  // Of LinearPrecision::int8 alone.
  }
}

constexpr size_t kAnyPanels = ~size_t{0};

template <LinearPrecision precision>
LinearShape vector_shape(size_t in) {
  LinearShape shape = Arithmetic<precision>::kShape;
  if (in <= kLinearBlock * shape.group) shape.panels = kAnyPanels;
  return shape;
}

#if defined(__AMX_TILE__)
template <TileProduct product>
LinearShape tile_shape(size_t group, size_t in) {
  using S = TileShape<product>;
  const size_t steps = S::steps(in);
  if (steps <= S::kBlock) return {group, S::kFeatures, kLinearTile, S::rows(steps), kAnyPanels, kLeastTiles};
  // Room for the sums of kLinearPanels: where they are all of y, a row of x is packed once.
  constexpr size_t kMost = kLinearTileSums / (kLinearPanels * kLinearPanel);
  const size_t rows = smaller(S::rows(steps), kMost);
  const size_t panels = kLinearTileSums / (rows * kLinearPanel);
  return {group, S::kFeatures, kLinearTile, rows, panels, kLeastTiles};
}
#endif

}  // namespace

LinearShape linear_shape(LinearPrecision precision, [[maybe_unused]] LinearWeightType type, size_t in,
                         [[maybe_unused]] size_t tokens) {
#if defined(__AMX_TILE__)
  if (precision == kBf16) return tile_shape<TileProduct::bfloat16>(2, in);
  if (precision == kInt8) return tile_shape<TileProduct::int8>(4, in);
  const size_t group = type == LinearWeightType::bfloat16 ? 2 : 1;
  if (tokens >= kSplitTokens) return tile_shape<TileProduct::split>(group, in);
  LinearShape shape = vector_shape<kFloat32>(in);
  shape.group = group;
  shape.unit = kTileFeatures;
  return shape;
#else
  switch (precision) {
    case kFloat32:
      break;
    case kBf16:
      return vector_shape<kBf16>(in);
    case kInt8:
      return vector_shape<kInt8>(in);
  }
  return vector_shape<kFloat32>(in);
#endif
}

void linear_pack(LinearPrecision precision, const void* weight, LinearWeightType type, size_t out, size_t in,
                 float* packed) {
  const size_t words = linear_words(in, linear_shape(precision, type, in, 1));
  switch (precision) {
    case kFloat32:
      return pack_floats<kFloat32>(weight, type, out, in, words, packed);
    case kBf16:
      return pack_floats<kBf16>(weight, type, out, in, words, packed);
    case kInt8:
      return pack_as<kInt8>(static_cast<const int8_t*>(weight), out, in, words, packed);
  }
}

void linear_span(LinearPrecision precision, const LinearProblem& problem, size_t first_row, size_t rows,
                 size_t first_panel, size_t panels, float* scratch) {
  const auto run = [&](auto* span) {
    span(problem, first_row, rows, first_panel, panels, scratch);
    if (problem.past_caches) store_fence();
  };
#if defined(__AMX_TILE__)
  if (precision == kBf16) return run(&tile_span<TileProduct::bfloat16>);
  if (precision == kInt8) return run(&tile_span<TileProduct::int8>);
  const bool halves = problem.weight_type == LinearWeightType::bfloat16;
  if (problem.tokens < kSplitTokens) return run(halves ? &vector_span<kFloat32, true> : &vector_span<kFloat32, false>);
  return run(halves ? &tile_span<TileProduct::split_by_bfloat16> : &tile_span<TileProduct::split>);
#else
  switch (precision) {
    case kFloat32:
      return run(&vector_span<kFloat32, false>);
    case kBf16:
      return run(&vector_span<kBf16, false>);
    case kInt8:
      return run(&vector_span<kInt8, false>);
  }
#endif
}

}  // namespace vitrify::VITRIFY_LEVEL
