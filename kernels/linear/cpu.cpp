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

// What a tile brings into the second-level cache while it is computed: a line for every kLineEach features.
constexpr size_t kLine = 64 / sizeof(float);
constexpr size_t kLineEach = 4;

template <size_t kRows>
inline __attribute__((always_inline)) void step(const float* x, const float* weight, Lanes (&low)[kRows],
                                                Lanes (&high)[kRows]) {
  const Lanes weight_low = load(weight);
  const Lanes weight_high = load(weight + kLanes);
#pragma GCC unroll 16
  for (size_t row = 0; row < kRows; ++row) {
    const Lanes value = all(x[row]);
    low[row] += value * weight_low;
    high[row] += value * weight_high;
  }
}

// A tile's sums from `depth` features: sums[kRows][kPanel] = (add ? sums : 0) + x · panel. An element's products are
// added one by one in the order of the features, whatever kRows is. ahead: what to have in the cache next.
template <size_t kRows>
void multiply(const float* x, const float* panel, size_t depth, bool add, float* sums, const float* ahead) {
  for (size_t pair = 0; pair < kPanel; pair += kPair) {
    Lanes low[kRows];
    Lanes high[kRows];
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      low[row] = add ? load(sums + row * kPanel + pair) : Lanes{};
      high[row] = add ? load(sums + row * kPanel + pair + kLanes) : Lanes{};
    }
    const float* weight = panel + pair;
    size_t k = 0;
    for (; k + kLineEach <= depth; k += kLineEach, weight += kLineEach * kPanel) {
      if (pair == 0) __builtin_prefetch(ahead + k / kLineEach * kLine, 0, 2);
#pragma GCC unroll 1  // More would run out of registers.
      for (size_t i = 0; i < kLineEach; ++i) {
        step<kRows>(x + (k + i) * kRows, weight + i * kPanel, low, high);
      }
    }
    for (; k < depth; ++k, weight += kPanel) {
      step<kRows>(x + k * kRows, weight, low, high);
    }
#pragma GCC unroll 16
    for (size_t row = 0; row < kRows; ++row) {
      store(sums + row * kPanel + pair, low[row]);
      store(sums + row * kPanel + pair + kLanes, high[row]);
    }
  }
}

using Multiply = void(const float* x, const float* panel, size_t depth, bool add, float* sums, const float* ahead);

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

// Has a tile's part of what finish_tile reads and writes on its way while the tile is computed.
inline void fetch_tile(const LinearProblem& problem, size_t first_row, size_t rows, size_t panel) {
  for (size_t row = first_row; row < first_row + rows; ++row) {
    for (size_t i = 0; i < kPanel; i += kLine) {
      const size_t at = row * problem.out + panel * kPanel + i;
      __builtin_prefetch(problem.y + at, 1, 2);
      if (problem.residual != nullptr) __builtin_prefetch(problem.residual + at, 0, 2);
    }
  }
}

typedef float Quad __attribute__((vector_size(16)));
typedef float AnyQuad __attribute__((vector_size(16), aligned(4), may_alias));

// Four features of four rows; to[4] rows apart. Rows of x become columns.
inline void turn(const float* const (&from)[4], size_t rows, float* to) {
  const Quad a = *reinterpret_cast<const AnyQuad*>(from[0]);
  const Quad b = *reinterpret_cast<const AnyQuad*>(from[1]);
  const Quad c = *reinterpret_cast<const AnyQuad*>(from[2]);
  const Quad d = *reinterpret_cast<const AnyQuad*>(from[3]);
  const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *reinterpret_cast<AnyQuad*>(to) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  *reinterpret_cast<AnyQuad*>(to + rows) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  *reinterpret_cast<AnyQuad*>(to + 2 * rows) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *reinterpret_cast<AnyQuad*>(to + 3 * rows) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// `count` features of `rows` rows that lie `stride` apart, feature by feature: x[count][rows], and up to three
// elements after it, which may be anything.
void gather_part(const float* from, size_t stride, size_t rows, size_t count, float* x) {
  size_t k = 0;
  // A line of every row at a time. The last rows first: what a quad has too much is then overwritten by the next
  // feature's first.
  for (; k + kLine <= count; k += kLine) {
    for (size_t quad = (rows + 3) / 4; quad-- > 0;) {
      const float* lines[4];
      for (size_t i = 0; i < 4; ++i)
        lines[i] = from + smaller(4 * quad + i, rows - 1) * stride + k;
      for (size_t i = 0; i < kLine; i += 4) {
        const float* const at[4] = {lines[0] + i, lines[1] + i, lines[2] + i, lines[3] + i};
        turn(at, rows, x + (k + i) * rows + 4 * quad);
      }
    }
  }
  for (; k < count; ++k) {
    for (size_t i = 0; i < rows; ++i)
      x[k * rows + i] = from[i * stride + k];
  }
}

// Features first … last - 1 of the rows of x, feature by feature.
void gather(const LinearProblem& problem, size_t first_row, size_t rows, size_t first, size_t last, float* x) {
  for (size_t part = 0, start = 0; part < 2; start += problem.features[part], ++part) {
    const size_t features = problem.features[part];
    const size_t from = first > start ? first - start : 0;
    if (last <= start || from >= features) continue;
    const size_t count = smaller(last - start, features) - from;
    gather_part(problem.x[part] + first_row * features + from, features, rows, count, x);
    x += count * rows;
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
  float* const sums = scratch + kLinearRows * kLinearBlock + kLine;
  const size_t in = problem.features[0] + problem.features[1];
  const size_t blocks = linear_blocks(in);
  const size_t tiles = (rows + kTile - 1) / kTile;
  for (size_t block = 0; block < blocks; ++block) {
    const size_t first = linear_cut(in, block, blocks);
    const size_t depth = linear_cut(in, block + 1, blocks) - first;
    const size_t chunks = linear_parts(depth, kLinearChunk);
    for (size_t tile = 0; tile < tiles; ++tile) {
      const size_t start = linear_cut(rows, tile, tiles);
      const size_t tile_rows = linear_cut(rows, tile + 1, tiles) - start;
      gather(problem, first_row + start, tile_rows, first, first + depth, x + start * depth);
    }
    const float* weight = problem.weight + (first * linear_panels(problem.out) + first_panel * depth) * kPanel;
    for (size_t panel = 0; panel < panels; ++panel) {
      float* const panel_sums = sums + (blocks > 1 ? panel * rows * kPanel : 0);
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        const size_t count = linear_cut(depth, chunk + 1, chunks) - linear_cut(depth, chunk, chunks);
        const float* const next = weight + count * kPanel;
        const bool last = block + 1 == blocks && chunk + 1 == chunks;
        for (size_t tile = 0; tile < tiles; ++tile) {
          const size_t start = linear_cut(rows, tile, tiles);
          const size_t tile_rows = linear_cut(rows, tile + 1, tiles) - start;
          float* const tile_sums = panel_sums + start * kPanel;
          // The first tiles fetch the next chunk of the weight, the others what is there.
          const size_t fetched = tile * (count / kLineEach) * kLine;
          const float* ahead = fetched < count * kPanel ? next + fetched : tile_sums;
          if (last) fetch_tile(problem, first_row + start, tile_rows, first_panel + panel);
          multiply_of(tile_rows)(x + start * depth + linear_cut(depth, chunk, chunks) * tile_rows, weight, count,
                                 block + chunk > 0, tile_sums, ahead);
          if (last) finish_tile(problem, first_row + start, tile_rows, first_panel + panel, tile_sums);
        }
        weight = next;
      }
    }
  }
}

}  // namespace vitrify::VITRIFY_LEVEL
