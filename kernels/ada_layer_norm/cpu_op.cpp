#include "ada_layer_norm/cpu.h"
#include "native/rows.h"

namespace vitrify {
namespace {

template <const PerLevel<AdaNormSpan>& span_by_level>
class AdaNorm final : public Kernel {
 public:
  explicit AdaNorm(const Node& node)
      : factor_at_(columns_at(node, "factor_at")),
        shift_at_(columns_at(node, "shift_at")),
        epsilon_(node.real("epsilon")) {
    if (!(epsilon_ >= 0)) throw OpError("attribute epsilon is " + std::to_string(epsilon_) + ", expected 0 or more");
  }

  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    const Tensor& x = inputs[0];
    const Tensor& modulation = inputs[1];
    AdaNormProblem problem;
    problem.x = x.as<const float>();
    problem.factor = columns_of(modulation, "factor_at", factor_at_, x.dims[2]);
    problem.shift = columns_of(modulation, "shift_at", shift_at_, x.dims[2]);
    problem.y = outputs[0].as<float>();
    problem.tokens = static_cast<size_t>(x.dims[1]);
    problem.width = static_cast<size_t>(x.dims[2]);
    problem.columns = static_cast<size_t>(modulation.dims[1]);
    problem.epsilon = epsilon_;
    AdaNormSpan* const span = span_by_level.active();
    for_rows(static_cast<size_t>(x.dims[0]) * problem.tokens, problem.width, parallel,
             [&](size_t first, size_t last) { span(problem, first, last); });
  }

 private:
  int64_t factor_at_;
  int64_t shift_at_;
  float epsilon_;
};

constexpr TensorContract kInputs[] = {
    {"x", DType::float32, 3, {"batch", "tokens", "width"}},
    {"modulation", DType::float32, 2, {"batch", "columns"}},
};
constexpr TensorContract kOutputs[] = {
    {"y", DType::float32, 3, {"batch", "tokens", "width"}},
};
constexpr AttributeContract kAttributes[] = {
    {"factor_at", AttributeKind::integer, true, 0},
    {"shift_at", AttributeKind::integer, true, 0},
    {"epsilon", AttributeKind::real, true, 0},
};

}  // namespace

const Operator kAdaLayerNorm = {
    "AdaLayerNorm", 1, kAttributes, 3, kInputs, 2, kOutputs, 1, &create_kernel<AdaNorm<ada_layer_norm_span_by_level>>};

const Operator kAdaRMSNorm = {
    "AdaRMSNorm", 1, kAttributes, 3, kInputs, 2, kOutputs, 1, &create_kernel<AdaNorm<ada_rms_norm_span_by_level>>};

}  // namespace vitrify
