// A tile's x on its way into scratch: normalised, upsampled, with zeros around the image, and in the words and order
// that the product reads: [parts][words of channels][rows][columns], rows and columns of the tile and of what its
// kernel reaches around it.
#pragma once

#include "conv/cpu.h"
#include "native/bfloat16.h"
#include "native/split.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// x · σ(x)
inline Lanes silu(Lanes x) {
  constexpr float kMinusLog2E = -1.44269504088896341F;
  const Lanes size = x < 0.0F ? -x : x;
  // 2^(-|…|) never overflows; for negative x, 1 / (1 + e) with e its inverse is e' / (1 + e').
  const Lanes e = exp2_of_nonpositive(kMinusLog2E * size);
  return x * (x < 0.0F ? e : all(1.0F)) * inverse(1.0F + e);
}

// One row of one channel, `columns` pixels from `column` - reach on, into line, with zeros where the image has none and
// up to the end of a register.
inline void take_line(const ConvProblem& problem, size_t image, size_t channel, size_t row, size_t column,
                      size_t columns, size_t reach, float* line) {
  const size_t width = problem.y_width;
  const size_t at = image * problem.in + channel;
  const float* const from = problem.x + (at * problem.height + (problem.upsample ? row / 2 : row)) * problem.width;
  const size_t first = column < reach ? reach - column : 0;  // Of line, the first that the image has.
  const size_t last = smaller(columns, width + reach - column);
  size_t i = 0;
  for (; i < first; ++i)
    line[i] = 0.0F;
  const size_t start = column + first - reach;
  if (problem.upsample) {
    if (i < last && start % 2 != 0) line[i++] = from[start / 2];
    const float* const twice = from + (start + 1) / 2;
    const size_t pairs = (last - i) / 2;
    for (size_t k = 0; k < pairs; ++k) {
      const uint64_t bits = to_bits(twice[k]);
      const uint64_t both = bits | bits << 32;
      __builtin_memcpy(line + i + 2 * k, &both, sizeof(both));
    }
    i += 2 * pairs;
    if (i < last) line[i++] = twice[pairs];
  } else {
    __builtin_memcpy(line + first, from + start, (last - first) * sizeof(float));
    i = last;
  }
  if (problem.factor != nullptr) {
    const float mean = problem.mean[at];
    const float factor = problem.factor[at];
    const float shift = problem.shift[at];
    for (size_t k = first; k < last; k += kLanes)  // Beyond the last what is written now is overwritten below.
      store(line + k, silu((load(line + k) - mean) * factor + shift));
  }
  for (; i < columns || i % kLanes != 0; ++i)
    line[i] = 0.0F;
}

// Has the cache bring that row of another channel: its pieces are too short for the machine to see them coming.
inline void fetch_line(const ConvProblem& problem, size_t image, size_t channel, size_t row, size_t column,
                       size_t columns) {
  constexpr size_t kLine = 16;
  const size_t times = problem.upsample ? 2 : 1;
  const size_t at = (image * problem.in + channel) * problem.height + row / times;
  const float* const from = problem.x + at * problem.width + column / times;
  for (size_t i = 0; i < columns / times; i += kLine)
    __builtin_prefetch(from + i, 0, 2);
}

// How words of a tile are made of lines.
enum class ConvWords { floats, rounded, pairs, split };

template <ConvWords kind>
inline void make_words(const float* first, const float* second, size_t count, size_t part_words, float* to,
                       [[maybe_unused]] BitLanes& largest) {
  const auto one = [&](size_t i, Lanes a, Lanes b, const auto& put) __attribute__((always_inline)) {
    if constexpr (kind == ConvWords::floats) {
      put(i, 0, a);
    } else if constexpr (kind == ConvWords::rounded) {
      put(i, 0, round_bf16(a));
    } else if constexpr (kind == ConvWords::pairs) {
      put(i, 0, (Lanes)((BitLanes)round_bf16(a) >> 16 | (BitLanes)round_bf16(b)));
    } else {
#if defined(__AMX_TILE__)
      const BitLanes size_a = (BitLanes)a & 0x7FFFFFFFU;  // Of NaN and infinity larger than any number's.
      const BitLanes size_b = (BitLanes)b & 0x7FFFFFFFU;
      largest = largest > size_a ? largest : size_a;
      largest = largest > size_b ? largest : size_b;
      const Split parts = split(a, b);
      for (size_t part = 0; part < kSplitParts; ++part)
        put(i, part, (Lanes)parts.part[part]);
#endif
    }
  };
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    one(i, load(first + i), load(second + i),
        [&](size_t at, size_t part, Lanes value) { store(to + part * part_words + at, value); });
  }
  if (i == count) return;
  // The lines are longer than count, by zeros.
  one(i, load(first + i), load(second + i), [&](size_t at, size_t part, Lanes value) {
    __builtin_memcpy(to + part * part_words + at, &value, (count - at) * sizeof(float));
  });
}

// The whole tile. Gives the largest magnitude's bits where the words are split.
template <ConvWords kind>
uint32_t take_tile(const ConvForm& form, const ConvProblem& problem, size_t image, const ConvTile& tile, float* words,
                   float* lines) {
  const size_t reach = problem.kernel / 2;
  const size_t rows = tile.rows + 2 * reach;
  const size_t columns = tile.columns + 2 * reach;
  const size_t groups = conv_words(problem.in, form);
  float* const second = lines + conv_line_words(tile, problem.kernel);
  for (size_t i = 0; i < 2 * conv_line_words(tile, problem.kernel); ++i)
    lines[i] = 0.0F;
  BitLanes largest = {};
  for (size_t group = 0; group < groups; ++group) {
    const size_t channel = group * form.group;
    for (size_t row = 0; row < rows; ++row) {
      float* const to = words + (group * rows + row) * columns;
      const bool inside = row + tile.row >= reach && row + tile.row - reach < problem.y_height;
      for (size_t i = 0; i < form.group; ++i) {
        float* const line = i == 0 ? lines : second;
        if (inside && channel + i < problem.in) {
          if (channel + i + form.group < problem.in) {
            fetch_line(problem, image, channel + i + form.group, row + tile.row - reach, tile.column, columns);
          }
          take_line(problem, image, channel + i, row + tile.row - reach, tile.column, columns, reach, line);
        } else {
          for (size_t k = 0; k < columns; ++k)
            line[k] = 0.0F;
        }
      }
      make_words<kind>(lines, second, columns, groups * rows * columns, to, largest);
    }
  }
  uint32_t most = 0;
  for (size_t i = 0; i < kLanes; ++i)
    most = largest[i] > most ? largest[i] : most;
  return most;
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
