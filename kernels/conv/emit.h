// Sums to y: where the positions of a product lie in the image, and what is added to them.
#pragma once

#include "conv/cpu.h"
#include "native/lanes.h"

namespace vitrify::VITRIFY_LEVEL {
namespace {

// Positions of a tile, in the order in which the words of its x lie, columns around it included, are computed in runs:
// along each row of the tile, or along all of it where that takes fewer; what lies between rows is then computed in
// vain.
class Runs {
 public:
  // pieces: room for them (conv_pieces). width: of y.
  Runs(const ConvTile& tile, size_t kernel, size_t run, size_t width, ConvPiece* pieces)
      : pieces_(pieces),
        stride_(tile.columns + kernel - 1),
        run_(run),
        each_(conv_parts(tile.columns, run)),
        whole_(conv_parts((tile.rows - 1) * stride_ + tile.columns, run)),
        by_rows_(tile.rows * each_ <= whole_),
        count_(by_rows_ ? tile.rows * each_ : whole_) {
    for (size_t index = 0; index < count_; ++index) {
      const size_t first = start(index);
      const size_t last = by_rows_ ? first + smaller(run, tile.columns - index % each_ * run) : first + run;
      for (size_t position = first; position < last;) {
        const size_t row = position / stride_;
        const size_t column = position % stride_;
        const size_t end = smaller(last, position + stride_ - column);
        if (row < tile.rows && column < tile.columns) {
          pieces_[pieces_count_++] = {index, position - first, row * width + column,
                                      smaller(end - position, tile.columns - column)};
        }
        position = end;
      }
    }
  }

  size_t count() const { return count_; }
  size_t width() const { return run_; }
  size_t start(size_t index) const { return by_rows_ ? index / each_ * stride_ + index % each_ * run_ : index * run_; }
  const ConvPiece* begin() const { return pieces_; }
  const ConvPiece* end() const { return pieces_ + pieces_count_; }

 private:
  ConvPiece* pieces_;
  size_t pieces_count_ = 0;
  size_t stride_;
  size_t run_;
  size_t each_;
  size_t whole_;
  bool by_rows_;
  size_t count_;
};

// `outs` output channels from `first` on, at all positions: channel by channel, for what lies together in memory is
// then read and written together. sums: [runs][outs][run].
inline void emit(const ConvProblem& problem, size_t image, const ConvTile& tile, const Runs& runs, size_t first,
                 size_t outs, const float* sums) {
  const size_t height = problem.y_height;
  const size_t width = problem.y_width;
  for (size_t i = 0; i < smaller(outs, problem.out - first); ++i) {
    const size_t corner = ((image * problem.out + first + i) * height + tile.row) * width + tile.column;
    const float bias = problem.bias[first + i];
    for (const ConvPiece& piece : runs) {
      const float* const from = sums + (piece.run * outs + i) * runs.width() + piece.at;
      const size_t at = corner + piece.to;
      float* const y = problem.y + at;
      const float* const residual = problem.residual == nullptr ? nullptr : problem.residual + at;
      size_t k = 0;
      for (; k + kLanes <= piece.count; k += kLanes) {
        const Lanes value = load(from + k) + bias;
        const Lanes result = residual == nullptr ? value : load(residual + k) + value;
        problem.past_caches ? store_past_caches(y + k, result) : store(y + k, result);
      }
      for (; k < piece.count; ++k) {
        const float value = from[k] + bias;
        y[k] = residual == nullptr ? value : residual[k] + value;
      }
    }
  }
}

}  // namespace
}  // namespace vitrify::VITRIFY_LEVEL
