// The product on the tile unit, blocked as vector_span's. While the unit multiplies a tile, vector registers finish the
// tile before it and bring the next chunk of the weight.
#pragma once

#include "linear/finish.h"
#include "linear/gather.h"
#include "linear/tile_product.h"
#include "linear/vector_span.h"

#if defined(__AMX_TILE__)

namespace vitrify::VITRIFY_LEVEL {
namespace {

constexpr size_t kLeastTiles = 6;

// `count` features of a row from `first` on: where they lie, or in `spare` if they do not lie together, with zeros
// behind the last.
inline const float* features_at(const LinearProblem& problem, size_t row, size_t first, size_t count, float* spare) {
  const size_t part = first < problem.features[0] ? 0 : 1;
  const size_t start = part == 0 ? 0 : problem.features[0];
  if (first + count <= start + problem.features[part]) {
    return problem.x[part] + row * problem.features[part] + first - start;
  }
  size_t found = 0;
  for_parts(problem, row, first, first + count, [&](const float* from, size_t, size_t there) {
    copy(from, there, spare + found);
    found += there;
  });
  for (; found < count; ++found)
    spare[found] = 0.0F;
  return spare;
}

// A row's part of one step: kFeatures features into the words of a tile's row. inverse: as in `narrow`.
template <TileProduct product>
inline void take_step(const float* from, float inverse, float* to) {
  using S = TileShape<product>;
  const Lanes first = load(from);
  const Lanes second = load(from + kLanes);
  if constexpr (S::kSplit) {
    const Split parts = split(first, second);
    for (size_t part = 0; part < kSplitParts; ++part)
      store(to + part * kSplitStep, (Lanes)parts.part[part]);
  } else if constexpr (S::kInt8) {
    const auto whole = [inverse](Lanes value) {
      return _mm512_maskz_cvtps_epi32(0xFFFF, (__m512)(value * inverse));  // Unmasked, GCC 12 warns of its own header.
    };
    const __m512i third = whole(load(from + 2 * kLanes));
    const __m512i fourth = whole(load(from + 3 * kLanes));
    // Packing is by quarters of a register: word i of quarter j is then the j-th of the i-th register's.
    const __m512i bytes =
        _mm512_packs_epi16(_mm512_packs_epi32(whole(first), whole(second)), _mm512_packs_epi32(third, fourth));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_store_si512(to, _mm512_maskz_permutexvar_epi32(0xFFFF, order, bytes));
  } else {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_store_si512(to, _mm512_maskz_permutexvar_epi16(0xFFFFFFFF, order, both));
  }
}

// Steps first … first + steps - 1 of a row into its place among its tile's words.
template <TileProduct product>
void take_row(const LinearProblem& problem, size_t row, size_t first, size_t steps, float inverse, float* to) {
  using S = TileShape<product>;
  alignas(64) float spare[S::kFeatures];
  for (size_t step = 0; step < steps; ++step, to += S::kXStep) {
    take_step<product>(features_at(problem, row, (first + step) * S::kFeatures, S::kFeatures, spare), inverse, to);
  }
}

// As take_row, of zeros.
template <TileProduct product>
void skip_row(size_t steps, float* to) {
  using S = TileShape<product>;
  for (size_t part = 0; part < steps * S::kXParts; ++part, to += kLinearTile * kTileWords)
    store(to, Lanes{});
}

// What is known of the rows of one call.
struct TileRowFacts {
  float scale[kLinearTileRows];
  float inverse[kLinearTileRows];
  bool split[kLinearTileRows];
};

// Where one chunk of a panel lies as it is kept.
struct TileChunk {
  const float* weight = nullptr;
  size_t steps = 0;
};

// What vector registers do between the steps of a tile's product.
template <TileProduct product>
class Between {
  using S = TileShape<product>;
  static constexpr LinearSums kSums = S::kInt8 ? LinearSums::whole : LinearSums::floats;
  static constexpr size_t kSplits = kTileWords * kLinearPanel / kLanes;  // Of a step of the weight.

 public:
  Between(const LinearProblem& problem, const float* offsets) : problem_(problem), offsets_(offsets) {}

  // The i-th of n shares of bringing a chunk into the cache.
  void fetch(const TileChunk& chunk, size_t i, size_t n, size_t steps) {
    const size_t lines = chunk.steps * S::kKeptStep / kLinearLine;
    line_ = chunk.weight + linear_cut(lines, i, n) * kLinearLine;
    lines_end_ = chunk.weight + linear_cut(lines, i + 1, n) * kLinearLine;
    lines_each_ = linear_parts(static_cast<size_t>(lines_end_ - line_) / kLinearLine, steps);
  }

  // The i-th of n shares of splitting a chunk.
  void split_weight(const TileChunk& chunk, float* panel, size_t i, size_t n, size_t steps) {
    chunk_ = chunk.weight;
    panel_ = panel;
    split_ = linear_cut(chunk.steps * kSplits, i, n);
    splits_end_ = linear_cut(chunk.steps * kSplits, i + 1, n);
    splits_each_ = linear_parts(splits_end_ - split_, steps);
  }

  // The sums of a tile are to be added to others, or with them to become rows of y. scales: of its rows.
  void take(const float* sums, float* others, bool last, size_t row, size_t rows, size_t panel, const float* scales) {
    sums_ = sums;
    others_ = others;
    last_ = last;
    row_ = 0;
    rows_ = rows;
    first_row_ = row;
    panel_of_sums_ = panel;
    scales_ = scales;
  }
  void spread_rows(size_t steps) { rows_each_ = linear_parts(rows_, steps); }

  void operator()() {
    for (size_t i = 0; i < rows_each_ && row_ < rows_; ++i)
      one_row();
    for (size_t i = 0; i < lines_each_ && line_ < lines_end_; ++i, line_ += kLinearLine)
      __builtin_prefetch(line_, 0, 2);
    if constexpr (S::kSplitWeight) {
      for (size_t i = 0; i < splits_each_ && split_ < splits_end_; ++i)
        one_split();
    }
  }

  void rest() {
    while (row_ < rows_)
      one_row();
    while (split_ < splits_end_)
      one_split();
  }

 private:
  void one_row() {
    const float* const sums = sums_ + row_ * kLinearPanel;
    float* const others = others_ == nullptr ? nullptr : others_ + row_ * kLinearPanel;
    if (last_) {
      finish_row<kSums>(problem_, first_row_ + row_, panel_of_sums_, sums, others, offsets_, scales_[row_]);
    } else {
      for (size_t i = 0; i < kLinearPanel; i += kLanes)
        store(others + i, add_sums<kSums>(load(others + i), load(sums + i)));
    }
    ++row_;
  }

  void one_split() {
    if constexpr (S::kSplitWeight) {
      const size_t step = split_ / kSplits;
      const size_t at = split_ % kSplits * kLanes;
      const float* const from = chunk_ + step * S::kKeptStep + at;
      const Split parts = split(load(from), load(from + kTileWords * kLinearPanel));
      for (size_t part = 0; part < kSplitParts; ++part)
        store(panel_ + step * S::kPanelStep + part * kSplitStep + at, (Lanes)parts.part[part]);
    }
    ++split_;
  }

  const LinearProblem& problem_;
  const float* offsets_;
  const float* line_ = nullptr;
  const float* lines_end_ = nullptr;
  size_t lines_each_ = 0;
  const float* chunk_ = nullptr;
  float* panel_ = nullptr;
  size_t split_ = 0;
  size_t splits_end_ = 0;
  size_t splits_each_ = 0;
  const float* sums_ = nullptr;
  float* others_ = nullptr;
  const float* scales_ = nullptr;
  bool last_ = false;
  size_t row_ = 0;
  size_t rows_ = 0;
  size_t rows_each_ = 0;
  size_t first_row_ = 0;
  size_t panel_of_sums_ = 0;
};

// What could not be split, as float32: rows of x and panels of the weight.
template <bool halves>
void correct(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
             const float* flags, const bool* may, float* scratch) {
  constexpr size_t kMost = Arithmetic<LinearPrecision::float32>::kShape.rows;
  const auto recompute = [&](size_t row, size_t row_end, size_t panel, size_t count) {
    for (; row < row_end; row += kMost) {
      vector_span<LinearPrecision::float32, halves>(problem, first_row + row, smaller(kMost, row_end - row), panel,
                                                    count, scratch);
    }
  };
  for (size_t panel = first_panel; panel < first_panel + panels; ++panel) {
    const float* const flag = flags + panel * kLinearPanel;
    if (sum(load(flag) + load(flag + kLanes)) != 0.0F) recompute(0, rows, panel, 1);
  }
  for (size_t row = 0; row < rows; ++row) {
    if (may[row]) continue;
    size_t end = row + 1;
    while (end < rows && !may[end])
      ++end;
    for (size_t panel = 0; panel < panels; panel += kLinearPanels)
      recompute(row, end, first_panel + panel, smaller(kLinearPanels, panels - panel));
    row = end;
  }
}

template <TileProduct product>
void tile_span(const LinearProblem& problem, size_t first_row, size_t rows, size_t first_panel, size_t panels,
               float* scratch) {
  using S = TileShape<product>;
  constexpr size_t kPanel = kLinearPanel;
  float* const x = scratch;
  float* const tile_sums = x + kLinearTileX;
  float* const panel_parts = tile_sums + kLinearTile * kPanel;
  float* const sums = panel_parts + 2 * kLinearTileChunk;
  TileRowFacts facts;
  for (size_t i = 0; (S::kInt8 || S::kSplit) && i < rows; ++i) {
    const float most = largest(problem, first_row + i);
    facts.scale[i] = most / 127;
    facts.inverse[i] = 127.0F / most;
    facts.split[i] = may_split(most);
  }
  const size_t steps = S::steps(problem.features[0] + problem.features[1]);
  const size_t panel_words = steps * S::kKeptStep;
  const float* const tail = problem.weight + linear_panels(problem.out) * panel_words;
  const size_t blocks = linear_parts(steps, S::kBlock);
  const size_t tiles = linear_parts(rows, kLinearTile);
  {
    const TileRegisters registers;
    Between<product> between(problem, tail);
    for (size_t block = 0; block < blocks; ++block) {
      const size_t first = linear_cut(steps, block, blocks);
      const size_t depth = linear_cut(steps, block + 1, blocks) - first;
      for (size_t i = 0; i < rows; ++i) {
        float* const to = x + i / kLinearTile * depth * S::kXStep + i % kLinearTile * kTileWords;
        if (S::kSplit && !facts.split[i]) {
          skip_row<product>(depth, to);
        } else {
          take_row<product>(problem, first_row + i, first, depth, S::kInt8 ? facts.inverse[i] : 1.0F, to);
        }
      }
      const size_t chunks = linear_parts(depth, S::kChunk);
      // Chunks one after the other, panel by panel; nothing behind the last.
      const auto chunk_at = [&](size_t index) -> TileChunk {
        if (index >= panels * chunks) return {};
        const size_t start = linear_cut(depth, index % chunks, chunks);
        return {problem.weight + (first_panel + index / chunks) * panel_words + (first + start) * S::kKeptStep,
                linear_cut(depth, index % chunks + 1, chunks) - start};
      };
      if constexpr (S::kSplitWeight) {
        between.split_weight(chunk_at(0), panel_parts, 0, 1, 1);
        between.rest();
      }
      for (size_t index = 0; index < panels * chunks; ++index) {
        const size_t panel = index / chunks;
        const size_t chunk = index % chunks;
        const TileChunk at = chunk_at(index);
        float* const next_parts = panel_parts + (index + 1) % 2 * kLinearTileChunk;
        const float* const multiplied = S::kSplitWeight ? panel_parts + index % 2 * kLinearTileChunk : at.weight;
        const bool begun = block + chunk > 0;
        const bool last = block + 1 == blocks && chunk + 1 == chunks;
        for (size_t tile = 0; tile < tiles; ++tile) {
          const size_t start = tile * kLinearTile;
          const size_t tile_rows = smaller(kLinearTile, rows - start);
          float* const y_sums = sums + (blocks > 1 ? panel * tiles * kLinearTile * kPanel : 0) + start * kPanel;
          // The first sums of several go to their place, others are added to what is there.
          float* const to = begun || last ? tile_sums : y_sums;
          if (last) fetch_tile(problem, first_row + start, tile_rows, first_panel + panel);
          between.spread_rows(at.steps);
          between.fetch(chunk_at(index + S::kWeightAhead), tile, tiles, at.steps);
          if constexpr (S::kSplitWeight) between.split_weight(chunk_at(index + 1), next_parts, tile, tiles, at.steps);
          const auto multiply = tile_rows > kTileRows ? &multiply_tiles<product, true, Between<product>>
                                                      : &multiply_tiles<product, false, Between<product>>;
          const float* const from = x + (tile * depth + linear_cut(depth, chunk, chunks)) * S::kXStep;
          multiply(from, multiplied, at.steps, to, between);
          if (begun || last) {
            between.take(tile_sums, begun ? y_sums : nullptr, last, first_row + start, tile_rows, first_panel + panel,
                         facts.scale + start);
          }
        }
      }
    }
    between.rest();
  }
  if constexpr (S::kSplit) {
    correct<!S::kSplitWeight>(problem, first_row, rows, first_panel, panels, tail, facts.split, scratch);
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL

#endif
