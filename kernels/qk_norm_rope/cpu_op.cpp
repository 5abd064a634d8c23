#include "native/rows.h"
#include "qk_norm_rope/cpu.h"

namespace vitrify {
namespace {

class QkNormRope final : public Kernel {
 public:
  explicit QkNormRope(const Node& node) : heads_(node.integer("num_heads")), epsilon_(node.real("epsilon")) {
    if (heads_ < 1) throw OpError("attribute num_heads is " + std::to_string(heads_) + ", expected 1 or more");
    if (!(epsilon_ >= 0)) throw OpError("attribute epsilon is " + std::to_string(epsilon_) + ", expected 0 or more");
  }

  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    const int64_t head_dim = inputs[1].dims[0];
    const int64_t half = inputs[2].dims[1];
    const int64_t width = inputs[0].dims[2];
    if (head_dim != 2 * half) {
      throw OpError("norm has " + std::to_string(head_dim) + " along head_dim, expected " + std::to_string(2 * half) +
                    ", twice what cos has along half");
    }
    if (width % heads_ != 0 || width / heads_ != head_dim) {
      throw OpError("x has " + std::to_string(width) + " along width, expected " + std::to_string(head_dim) +
                    " (head_dim) for each of " + std::to_string(heads_) + " (num_heads)");
    }
    QkNormRopeTables tables;
    tables.norm = inputs[1].as<const float>();
    tables.cos = inputs[2].as<const float>();
    tables.sin = inputs[3].as<const float>();
    tables.heads = static_cast<size_t>(heads_);
    tables.half = static_cast<size_t>(half);
    tables.epsilon = epsilon_;
    const float* x = inputs[0].as<const float>();
    float* y = outputs[0].as<float>();
    const size_t tokens = static_cast<size_t>(inputs[0].dims[1]);
    const size_t size = static_cast<size_t>(width);
    QkNormRopeToken* const compute = qk_norm_rope_token_by_level.active();
    for_rows(static_cast<size_t>(inputs[0].dims[0]) * tokens, size, parallel, [&](size_t first, size_t last) {
      for (size_t row = first; row < last; ++row) {
        compute(tables, x + row * size, row % tokens, y + row * size);
      }
    });
  }

 private:
  int64_t heads_;
  float epsilon_;
};

constexpr TensorContract kInputs[] = {
    {"x", DType::float32, 3, {"batch", "tokens", "width"}},
    {"norm", DType::float32, 1, {"head_dim"}},
    {"cos", DType::float32, 2, {"tokens", "half"}},
    {"sin", DType::float32, 2, {"tokens", "half"}},
};
constexpr TensorContract kOutputs[] = {
    {"y", DType::float32, 3, {"batch", "tokens", "width"}},
};
constexpr AttributeContract kAttributes[] = {
    {"num_heads", AttributeKind::integer, true, 0},
    {"epsilon", AttributeKind::real, true, 0},
};

}  // namespace

const Operator kQkNormRope = {"QkNormRope", 1, kAttributes, 2, kInputs, 4, kOutputs, 1, &create_kernel<QkNormRope>};

}  // namespace vitrify
