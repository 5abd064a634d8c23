// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
#include "conv/cpu.h"

#include "conv/tile_span.h"
#include "conv/vector_span.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

#if defined(__AVX512BF16__)
constexpr size_t kBf16Group = 2;
#else
constexpr size_t kBf16Group = 1;
#endif

// Elements whose sums are floats; those of the sums are doubles.
constexpr size_t kMomentsBlock = 4096;

template <typename Body>
auto with_weight(const void* weight, DType type, const Body& body) {
  switch (type) {
    case DType::bfloat16:
      return body(static_cast<const BFloat16*>(weight));
    case DType::float16:
      return body(static_cast<const Float16*>(weight));
    default:
      return body(static_cast<const float*>(weight));
  }
}

struct Sums {
  float values;
  float squares;
};

inline Sums block_sums(const float* x, size_t count, float centre) {
  Lanes values[2] = {};
  Lanes squares[2] = {};
  size_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    for (size_t half = 0; half < 2; ++half) {
      const Lanes value = load(x + i + half * kLanes) - centre;
      values[half] += value;
      squares[half] += value * value;
    }
  }
  Sums sums = {sum(values[0] + values[1]), sum(squares[0] + squares[1])};
  for (; i < count; ++i) {
    const float value = x[i] - centre;
    sums.values += value;
    sums.squares += value * value;
  }
  return sums;
}

void span(const ConvForm& form, ConvPrecision precision, const ConvProblem& problem, size_t image, const ConvTile& tile,
          size_t first_panel, size_t panels, float* scratch) {
  float* const x = scratch;
  float* const line =
      x + conv_scratch(tile, problem.in, problem.kernel, form) - 2 * conv_line_words(tile, problem.kernel);
  float* const sums = line - conv_sums(tile, problem.kernel);
  auto* const pieces = reinterpret_cast<ConvPiece*>(sums) - conv_pieces(tile);
#if defined(__AMX_TILE__)
  if (form.tiles) {
    const auto span_of = precision == ConvPrecision::bfloat16 ? &tile_span<false> : &tile_span<true>;
    return span_of(form, problem, image, tile, first_panel, panels, x, sums, line, pieces);
  }
#endif
  const bool rounded = precision == ConvPrecision::bfloat16;
  if constexpr (kBf16Group == 2) {
    if (rounded) {
      take_tile<ConvWords::pairs>(form, problem, image, tile, x, line);
      return vector_span<true>(form, problem, image, tile, first_panel, panels, x, sums, pieces);
    }
  }
  (rounded ? take_tile<ConvWords::rounded> : take_tile<ConvWords::floats>)(form, problem, image, tile, x, line);
  vector_span<false>(form, problem, image, tile, first_panel, panels, x, sums, pieces);
}

}  // namespace

ConvForm conv_form(ConvPrecision precision, [[maybe_unused]] const void* weight, [[maybe_unused]] DType type,
                   [[maybe_unused]] size_t count) {
  const bool rounded = precision == ConvPrecision::bfloat16;
#if defined(__AMX_TILE__)
  if (rounded) return {true, 2, 1, 1, kConvChannels, kTileRows};
  if (with_weight(weight, type, [&](const auto* of) { return may_split(of, count); })) {
    const size_t weights = type == DType::bfloat16 ? 1 : kSplitParts;
    return {true, 2, kSplitParts, weights, kConvChannels, kTileRows};
  }
#endif
  const size_t group = rounded ? kBf16Group : 1;
  return {false, group, 1, 1, group, kConvVectorPanel};
}

void conv_pack(const ConvForm& form, ConvPrecision precision, const void* weight, DType type, size_t out, size_t in,
               size_t kernel, float* packed) {
  with_weight(weight, type, [&](const auto* of) {
#if defined(__AMX_TILE__)
    if (form.tiles) return pack_for_tiles(form, of, out, in, kernel * kernel, packed);
#endif
    pack_for_vectors(form, precision == ConvPrecision::bfloat16, of, out, in, kernel * kernel, packed);
  });
}

// Around the mean of the first elements: a mean far from zero costs no digits of the variance.
GroupMoments conv_moments(const float* x, size_t count) {
  const size_t first = smaller(kMomentsBlock, count);
  const float centre = block_sums(x, first, 0.0F).values / static_cast<float>(first);
  double values = 0;
  double squares = 0;
  for (size_t i = 0; i < count; i += kMomentsBlock) {
    const Sums sums = block_sums(x + i, smaller(kMomentsBlock, count - i), centre);
    values += static_cast<double>(sums.values);
    squares += static_cast<double>(sums.squares);
  }
  const double mean = values / static_cast<double>(count);
  const double variance = squares / static_cast<double>(count) - mean * mean;
  return {static_cast<double>(centre) + mean, variance < 0 ? 0 : variance};
}

void conv_span(const ConvForm& form, ConvPrecision precision, const ConvProblem& problem, size_t image,
               const ConvTile& tile, size_t first_panel, size_t panels, float* scratch) {
  span(form, precision, problem, image, tile, first_panel, panels, scratch);
  if (problem.past_caches) store_fence();
}

}  // namespace vitrify::VITRIFY_LEVEL
