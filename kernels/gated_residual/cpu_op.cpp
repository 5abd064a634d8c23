#include "gated_residual/cpu.h"
#include "native/rows.h"

namespace vitrify {
namespace {

class GatedResidual final : public Kernel {
 public:
  explicit GatedResidual(const Node& node) : gate_at_(columns_at(node, "gate_at")) {}

  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    const Tensor& modulation = inputs[2];
    const float* x = inputs[0].as<const float>();
    const float* y = inputs[1].as<const float>();
    const float* gate = columns_of(modulation, "gate_at", gate_at_, inputs[0].dims[2]);
    float* out = outputs[0].as<float>();
    const size_t tokens = static_cast<size_t>(inputs[0].dims[1]);
    const size_t width = static_cast<size_t>(inputs[0].dims[2]);
    const size_t columns = static_cast<size_t>(modulation.dims[1]);
    GatedResidualRow* const compute = gated_residual_row_by_level.active();
    for_rows(static_cast<size_t>(inputs[0].dims[0]) * tokens, width, parallel, [&](size_t first, size_t last) {
      for (size_t row = first; row < last; ++row) {
        const size_t at = row * width;
        compute(x + at, y + at, gate + row / tokens * columns, out + at, width);
      }
    });
  }

 private:
  int64_t gate_at_;
};

constexpr TensorContract kInputs[] = {
    {"x", DType::float32, 3, {"batch", "tokens", "width"}},
    {"y", DType::float32, 3, {"batch", "tokens", "width"}},
    {"modulation", DType::float32, 2, {"batch", "columns"}},
};
constexpr TensorContract kOutputs[] = {
    {"out", DType::float32, 3, {"batch", "tokens", "width"}},
};
constexpr AttributeContract kAttributes[] = {
    {"gate_at", AttributeKind::integer, true, 0},
};

}  // namespace

const Operator kGatedResidual = {
    "GatedResidual", 1, kAttributes, 1, kInputs, 3, kOutputs, 1, &create_kernel<GatedResidual>};

}  // namespace vitrify
