// The product on vector registers: sums of a panel's output channels at two registers of positions, over all channels
// and taps; x at a tap lies a fixed number of words on.
#pragma once

#include "conv/emit.h"
#include "conv/take.h"
#include "conv/weight.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// As many output channels as there are registers for twice their sums, less what the factors need.
constexpr size_t kConvVectorPanel = kLanes == 16 ? 12 : 6;
constexpr size_t kConvVectorRun = 2 * kLanes;

template <bool pairs>
inline Lanes add_conv_product(Lanes sum, Lanes x, Lanes weight) {
#if defined(__AVX512BF16__)
  if constexpr (pairs) return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)x);
#endif
  if constexpr (!pairs) return sum + x * weight;
}

// sums[outs][kConvVectorRun]. plane: words from one word of channels to the next, row: from one row to the next.
template <bool pairs, size_t outs>
void multiply_vectors(const float* x, const float* weight, size_t words, size_t kernel, size_t plane, size_t row,
                      float* sums) {
  Lanes low[outs] = {};
  Lanes high[outs] = {};
  for (size_t word = 0; word < words; ++word, x += plane) {
    for (size_t dy = 0; dy < kernel; ++dy) {
      for (size_t dx = 0; dx < kernel; ++dx, weight += kConvVectorPanel) {
        const Lanes x_low = load(x + dy * row + dx);
        const Lanes x_high = load(x + dy * row + dx + kLanes);
#pragma GCC unroll 12
        for (size_t i = 0; i < outs; ++i) {
          const Lanes factor = all_words(weight + i);
          low[i] = add_conv_product<pairs>(low[i], x_low, factor);
          high[i] = add_conv_product<pairs>(high[i], x_high, factor);
        }
      }
    }
  }
#pragma GCC unroll 12
  for (size_t i = 0; i < outs; ++i) {
    store(sums + i * kConvVectorRun, low[i]);
    store(sums + i * kConvVectorRun + kLanes, high[i]);
  }
}

template <bool pairs>
void vector_span(const ConvForm& form, const ConvProblem& problem, size_t image, const ConvTile& tile,
                 size_t first_panel, size_t panels, const float* x, float* sums, ConvPiece* pieces) {
  const size_t row = tile.columns + problem.kernel - 1;
  const size_t plane = (tile.rows + problem.kernel - 1) * row;
  const size_t words = conv_words(problem.in, form);
  const size_t panel_words = words * problem.kernel * problem.kernel * kConvVectorPanel;
  const Runs runs(tile, problem.kernel, kConvVectorRun, problem.y_width, pieces);
  for (size_t panel = first_panel; panel < first_panel + panels; ++panel) {
    const size_t first = panel * kConvVectorPanel;
    const size_t outs = smaller(kConvVectorPanel, problem.out - first);
    const auto multiply = outs > kConvVectorPanel / 2   ? &multiply_vectors<pairs, kConvVectorPanel>
                          : outs > kConvVectorPanel / 4 ? &multiply_vectors<pairs, kConvVectorPanel / 2>
                                                        : &multiply_vectors<pairs, kConvVectorPanel / 4>;
    for (size_t run = 0; run < runs.count(); ++run) {
      multiply(x + runs.start(run), problem.weight + panel * panel_words, words, problem.kernel, plane, row,
               sums + run * outs * kConvVectorRun);
    }
    emit(problem, image, tile, runs, first, outs, sums);
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
