// Compiled once per level. Nothing of the C++ library here: an inline function of it, compiled for one level,
// could be linked into another.
//
// Blocked as Goto and van de Geijn do it (README.md): a block of x lies in the second-level cache, a panel of the
// weight in the first, a tile of y in registers.
#include "linear/cpu.h"

#include "native/lanes.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// A tile is kTile rows by two registers: as many accumulators as there are registers, less what the operands need.
constexpr size_t kTile = kLanes == 16 ? 14 : 6;
constexpr size_t kPair = 2 * kLanes;
constexpr size_t kStride = kLinearStride;
constexpr size_t kPanel = kLinearPanel;

inline size_t smaller(size_t a, size_t b) {
  return a < b ? a : b;
}

inline float from_bits(uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

inline float widen(float value) {
  return value;
}

struct BFloat16 {
  uint16_t bits;
};

inline float widen(BFloat16 value) {
  return from_bits(static_cast<uint32_t>(value.bits) << 16);
}

struct Float16 {
  uint16_t bits;
};

inline float widen(Float16 value) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000U) << 16;
  const uint32_t exponent = value.bits & 0x7C00U;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7FFFU) << 13;
  if (exponent == 0) {  // Subnormal in float16, normal in float32.
    const float size = static_cast<float>(value.bits & 0x3FFU) * 0x1p-24F;
    return from_bits(sign | __builtin_bit_cast(uint32_t, size));
  }
  return from_bits(sign | (magnitude + kRebias + (exponent == 0x7C00U ? kRebias : 0)));
}

template <typename T>
void pack(const T* weight, size_t out, size_t in, float* packed) {
  const size_t blocks = linear_blocks(in);
  for (size_t block = 0; block < blocks; ++block) {
    const size_t first = linear_cut(in, block, blocks);
    const size_t last = linear_cut(in, block + 1, blocks);
    for (size_t column = 0; column < out; column += kPanel) {
      const size_t columns = smaller(kPanel, out - column);
      for (size_t i = 0; i < columns; ++i) {
        const T* from = weight + (column + i) * in;
        for (size_t k = first; k < last; ++k) {
          packed[(k - first) * kPanel + i] = widen(from[k]);
        }
      }
      for (size_t i = columns; i < kPanel; ++i) {
        for (size_t k = first; k < last; ++k) {
          packed[(k - first) * kPanel + i] = 0;
        }
      }
      packed += (last - first) * kPanel;
    }
  }
}

// The tile's part of y from `depth` features: sums[kRows][kPanel] = (add ? sums : 0) + x · panel.
// An element's products are added in the order of the features whatever kRows is.
template <size_t kRows>
void multiply(const float* x, const float* panel, size_t depth, bool add, float* sums) {
  for (size_t pair = 0; pair < kPanel; pair += kPair) {
    Lanes low[kRows];
    Lanes high[kRows];
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      low[row] = add ? load(sums + row * kPanel + pair) : Lanes{};
      high[row] = add ? load(sums + row * kPanel + pair + kLanes) : Lanes{};
    }
    const float* weight = panel + pair;
    for (size_t k = 0; k < depth; ++k, weight += kPanel) {
      const Lanes weight_low = load(weight);
      const Lanes weight_high = load(weight + kLanes);
#pragma GCC unroll 16
      for (size_t row = 0; row < kRows; ++row) {
        const Lanes value = all(x[row * kStride + k]);
        low[row] += value * weight_low;
        high[row] += value * weight_high;
      }
    }
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      store(sums + row * kPanel + pair, low[row]);
      store(sums + row * kPanel + pair + kLanes, high[row]);
    }
  }
}

using Multiply = void(const float* x, const float* panel, size_t depth, bool add, float* sums);

Multiply* multiply_of(size_t rows) {
  static constexpr Multiply* kOf[] = {
      &multiply<1>,  &multiply<2>,  &multiply<3>, &multiply<4>,  &multiply<5>,  &multiply<6>,
#if defined(__AVX512F__)
      &multiply<7>,  &multiply<8>,  &multiply<9>, &multiply<10>, &multiply<11>, &multiply<12>,
      &multiply<13>, &multiply<14>,
#endif
  };
  static_assert(sizeof(kOf) / sizeof(kOf[0]) == kTile, "one for each number of rows");
  return kOf[rows - 1];
}

// x · Φ(x) in the tanh form, x · 1 / (1 + exp(-2u)) with u = √(2/π) (x + 0.044715 x³).
inline Lanes gelu(Lanes x) {
  constexpr float kMinusTwoU = -2 * 0.7978845608028654F * 1.4426950408889634F;
  const Lanes size = x < 0.0F ? -x : x;
  // 2^(-|…|) never overflows; for negative x, 1 / (1 + e) with e its inverse is e' / (1 + e').
  const Lanes e = exp2_of_nonpositive((kMinusTwoU * size) * (1.0F + 0.044715F * size * size));
  return x * (x < 0.0F ? e : all(1.0F)) / (1.0F + e);
}

// One row of a tile, kPanel columns, from sums to y.
inline void finish(LinearEpilogue epilogue, const float* sums, const float* bias, const float* gate,
                   const float* residual, float* y) {
  for (size_t i = 0; i < kPanel; i += kLanes) {
    Lanes value = load(sums + i);
    if (bias != nullptr) value += load(bias + i);
    if (epilogue == LinearEpilogue::gelu) value = gelu(value);
    if (epilogue == LinearEpilogue::gated_residual) value = load(residual + i) + load(gate + i) * value;
    store(y + i, value);
  }
}

inline void copy(const float* from, size_t count, float* to) {
  __builtin_memcpy(to, from, count * sizeof(float));
}

// The tile's rows into y.
void finish_tile(const LinearProblem& problem, size_t first_row, size_t rows, size_t panel, const float* sums) {
  const size_t column = panel * kPanel;
  const size_t columns = smaller(kPanel, problem.out - column);
  const bool gated = problem.epilogue == LinearEpilogue::gated_residual;
  for (size_t i = 0; i < rows; ++i) {
    const size_t row = first_row + i;
    const size_t at = row * problem.out + column;
    const float* bias = problem.bias == nullptr ? nullptr : problem.bias + column;
    const float* gate = gated ? problem.gate + row / problem.tokens * problem.gate_stride + column : nullptr;
    const float* residual = gated ? problem.residual + at : nullptr;
    if (columns == kPanel) {
      finish(problem.epilogue, sums + i * kPanel, bias, gate, residual, problem.y + at);
      continue;
    }
    float whole[4][kPanel] = {};
    if (bias != nullptr) copy(bias, columns, whole[0]);
    if (gated) {
      copy(gate, columns, whole[1]);
      copy(residual, columns, whole[2]);
    }
    finish(problem.epilogue, sums + i * kPanel, bias == nullptr ? nullptr : whole[0], whole[1], whole[2], whole[3]);
    copy(whole[3], columns, problem.y + at);
  }
}

// Features first … last - 1 of the rows of x, each row kStride apart.
void gather(const LinearProblem& problem, size_t first_row, size_t rows, size_t first, size_t last, float* x) {
  const size_t border = problem.features[0];
  for (size_t i = 0; i < rows; ++i, x += kStride) {
    const size_t row = first_row + i;
    if (first < border) copy(problem.x[0] + row * border + first, smaller(last, border) - first, x);
    if (last > border) {
      const size_t start = first > border ? first - border : 0;
      copy(problem.x[1] + row * problem.features[1] + start, last - border - start, x + (border + start - first));
    }
  }
}

}  // namespace

void linear_pack(const void* weight, LinearWeightType type, size_t out, size_t in, float* packed) {
  switch (type) {
    case LinearWeightType::float32:
      return pack(static_cast<const float*>(weight), out, in, packed);
    case LinearWeightType::bfloat16:
      return pack(static_cast<const BFloat16*>(weight), out, in, packed);
    case LinearWeightType::float16:
      return pack(static_cast<const Float16*>(weight), out, in, packed);
  }
}

void linear_span(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
                 float* scratch) {
  float* const x = scratch;
  float* const sums = scratch + kLinearRows * kStride;
  const size_t in = problem.features[0] + problem.features[1];
  const size_t blocks = linear_blocks(in);
  const size_t tiles = (rows + kTile - 1) / kTile;
  for (size_t block = 0; block < blocks; ++block) {
    const size_t first = linear_cut(in, block, blocks);
    const size_t last = linear_cut(in, block + 1, blocks);
    const size_t depth = last - first;
    gather(problem, first_row, rows, first, last, x);
    const float* weight = problem.weight + (first * linear_panels(problem.out) + first_panel * depth) * kPanel;
    for (size_t panel = 0; panel < panels; ++panel, weight += depth * kPanel) {
      for (size_t tile = 0; tile < tiles; ++tile) {
        const size_t start = linear_cut(rows, tile, tiles);
        const size_t count = linear_cut(rows, tile + 1, tiles) - start;
        float* const tile_sums = sums + (panel * rows + start) * kPanel;
        multiply_of(count)(x + start * kStride, weight, depth, block > 0, tile_sums);
        if (block + 1 == blocks) {
          finish_tile(problem, first_row + start, count, first_panel + panel, tile_sums);
        }
      }
    }
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
