#include "native/c_interface.h"
#include "residual_diff/cpu.h"

namespace vitrify {
namespace {

// A row is cut into pieces of at least 16384 elements, at most 256 pieces in flight. Where the cuts fall depends on
// the shape alone, and the pieces' sums are added in their order: the thread count cannot change a bit.
constexpr int64_t kPiece = 16384;
constexpr int64_t kPiecesInFlight = 256;

void residual_diff(const float* h1, const float* h0, const float* r_ref, float* r, float* sums, int64_t batch,
                   int64_t row, const Parallel& parallel) {
  const int64_t wanted = row / kPiece < 1 ? 1 : row / kPiece;
  const int64_t pieces = wanted < kPiecesInFlight ? wanted : kPiecesInFlight;
  const int64_t rows_at_once = kPiecesInFlight / pieces;
  ResidualDiffSpan* const span = residual_diff_span_by_level.active();
  double partial[kPiecesInFlight][2];

  for (int64_t first = 0; first < batch; first += rows_at_once) {
    const int64_t rows = batch - first < rows_at_once ? batch - first : rows_at_once;
    const auto piece = [&](size_t index) {
      const int64_t part = static_cast<int64_t>(index) % pieces;
      const int64_t start = row * part / pieces;
      const int64_t stop = row * (part + 1) / pieces;
      const int64_t at = (first + static_cast<int64_t>(index) / pieces) * row + start;
      span(h1 + at, h0 + at, r_ref + at, r + at, static_cast<size_t>(stop - start), partial[index]);
    };
    // Waking a pool costs more than a small request.
    const bool small = rows * row < 2 * kPiece;
    (small ? Parallel() : parallel).for_each(static_cast<size_t>(rows * pieces), piece);
    for (int64_t i = 0; i < rows; ++i) {
      double moved = 0;
      double size = 0;
      for (int64_t part = 0; part < pieces; ++part) {
        moved += partial[i * pieces + part][0];
        size += partial[i * pieces + part][1];
      }
      sums[2 * (first + i)] = static_cast<float>(moved);
      sums[2 * (first + i) + 1] = static_cast<float>(size);
    }
  }
}

class ResidualDiff final : public Kernel {
 public:
  explicit ResidualDiff(const Node&) {}
  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    const int64_t* dims = inputs[0].dims;
    residual_diff(inputs[0].as<const float>(), inputs[1].as<const float>(), inputs[2].as<const float>(),
                  outputs[0].as<float>(), outputs[1].as<float>(), dims[0], dims[1] * dims[2], parallel);
  }
};

constexpr TensorContract kInputs[] = {
    {"h1", DType::float32, 3, {"batch", "tokens", "width"}},
    {"h0", DType::float32, 3, {"batch", "tokens", "width"}},
    {"r_ref", DType::float32, 3, {"batch", "tokens", "width"}},
};
constexpr TensorContract kOutputs[] = {
    {"r", DType::float32, 3, {"batch", "tokens", "width"}},
    {"sums", DType::float32, 2, {"batch", "2"}},
};

}  // namespace

const Operator kResidualDiff = {"ResidualDiff", 1, nullptr, 0, kInputs, 3, kOutputs, 2, &create_kernel<ResidualDiff>};

}  // namespace vitrify

void vitrify_residual_diff_f32(const float* h1, const float* h0, const float* r_ref, float* r, float* sums,
                               int64_t batch, int64_t tokens, int64_t width) {
  vitrify::residual_diff(h1, h0, r_ref, r, sums, batch, tokens * width, vitrify::Parallel());
}
