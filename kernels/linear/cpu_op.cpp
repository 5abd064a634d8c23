#include <string>

#include "linear/cpu.h"
#include "native/aligned.h"
#include "native/pages.h"

namespace vitrify {
namespace {

// A thread's scratch, kept as long as the thread.
float* scratch() {
  thread_local Scratch memory;
  return memory.at_least(kLinearScratch);
}

LinearWeightType weight_type(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return LinearWeightType::bfloat16;
    case DType::float16:
      return LinearWeightType::float16;
    default:
      return LinearWeightType::float32;
  }
}

// How y is cut into tasks.
struct Cut {
  size_t rows;
  size_t panels;
};

// Below this many multiplications waking a pool costs more than it saves.
constexpr size_t kSmall = 1 << 19;
constexpr size_t kTasksPerThread = 2;

Cut cut(size_t rows, size_t panels, size_t in, size_t threads) {
  Cut parts = {linear_parts(rows, kLinearRows), linear_blocks(in) > 1 ? linear_parts(panels, kLinearPanels) : 1};
  if (threads < 2 || rows * panels * kLinearPanel * in < kSmall) return parts;
  // A few tasks for each thread and the same number for all, columns cut before rows: x is then copied more often,
  // but each part of the weight is read by fewer.
  const auto wanting = [&] {
    const size_t tasks = parts.rows * parts.panels;
    return tasks < kTasksPerThread * threads || tasks % threads != 0;
  };
  while (wanting() && parts.panels < panels && parts.rows * parts.panels < 2 * kTasksPerThread * threads)
    ++parts.panels;
  return parts;
}

template <LinearEpilogue epilogue, bool bias, int x_parts>
class LinearKernel final : public Kernel {
 public:
  explicit LinearKernel(const Node& node) {
    const Tensor* weight = node.constants[x_parts];
    if (weight == nullptr) throw OpError("weight is not constant: it must be an initializer");
    out_ = static_cast<size_t>(weight->dims[0]);
    in_ = static_cast<size_t>(weight->dims[1]);
    packed_ = aligned_floats(linear_packed(out_, in_));
    linear_pack_by_level.active()(weight->data, weight_type(weight->dtype), out_, in_, packed_.get());
    give_back_pages(weight->data, out_ * in_ * dtype_size(weight->dtype));
    if (epilogue == LinearEpilogue::gated_residual) {
      gate_at_ = node.integer("gate_at");
      if (gate_at_ < 0) throw OpError("attribute gate_at is " + std::to_string(gate_at_) + ", expected 0 or more");
    }
  }

  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    LinearProblem problem;
    for (int part = 0; part < x_parts; ++part) {
      problem.x[part] = inputs[part].as<const float>();
      problem.features[part] = static_cast<size_t>(inputs[part].dims[2]);
    }
    problem.weight = packed_.get();
    problem.epilogue = epilogue;
    if (bias) problem.bias = inputs[x_parts + 1].as<const float>();
    if (epilogue == LinearEpilogue::gated_residual) {
      const Tensor& modulation = inputs[x_parts + 2];
      const int64_t columns = modulation.dims[1];
      if (gate_at_ + static_cast<int64_t>(out_) > columns) {
        throw OpError("modulation has " + std::to_string(columns) + " along columns, expected at least " +
                      std::to_string(gate_at_) + " (gate_at) + " + std::to_string(out_) + " (out)");
      }
      problem.gate = modulation.as<const float>() + gate_at_;
      problem.gate_stride = static_cast<size_t>(columns);
      problem.residual = inputs[x_parts + 3].as<const float>();
    }
    problem.y = outputs[0].as<float>();
    problem.tokens = static_cast<size_t>(inputs[0].dims[1]);
    problem.rows = static_cast<size_t>(inputs[0].dims[0]) * problem.tokens;
    problem.out = out_;

    const size_t panels = linear_panels(out_);
    const Cut parts = cut(problem.rows, panels, in_, parallel.threads());
    LinearSpan* const span = linear_span_by_level.active();
    parallel.for_each(parts.rows * parts.panels, [&](size_t task) {
      const size_t row = linear_cut(problem.rows, task % parts.rows, parts.rows);
      const size_t row_end = linear_cut(problem.rows, task % parts.rows + 1, parts.rows);
      const size_t panel = linear_cut(panels, task / parts.rows, parts.panels);
      const size_t panel_end = linear_cut(panels, task / parts.rows + 1, parts.panels);
      span(problem, row, row_end - row, panel, panel_end - panel, scratch());
    });
  }

 private:
  AlignedFloats packed_;
  size_t out_ = 0;
  size_t in_ = 0;
  int64_t gate_at_ = 0;
};

constexpr DTypes kWeight = {DType::float32, DType::bfloat16, DType::float16};

constexpr TensorContract kInputs[] = {
    {"x", DType::float32, 3, {"batch", "tokens", "in"}},
    {"weight", kWeight, 2, {"out", "in"}},
    {"bias", DType::float32, 1, {"out"}},
    {"modulation", DType::float32, 2, {"batch", "columns"}},
    {"residual", DType::float32, 3, {"batch", "tokens", "out"}},
};
constexpr TensorContract kInputs2[] = {
    {"x_0", DType::float32, 3, {"batch", "tokens", "in_0"}},
    {"x_1", DType::float32, 3, {"batch", "tokens", "in_1"}},
    {"weight", kWeight, 2, {"out", "in_0 + in_1"}},
    {"bias", DType::float32, 1, {"out"}},
    {"modulation", DType::float32, 2, {"batch", "columns"}},
    {"residual", DType::float32, 3, {"batch", "tokens", "out"}},
};
constexpr TensorContract kOutputs[] = {
    {"y", DType::float32, 3, {"batch", "tokens", "out"}},
};
constexpr AttributeContract kGateAt[] = {
    {"gate_at", AttributeKind::integer, true, 0},
};

}  // namespace

const Operator kLinear = {
    "Linear", 1, nullptr, 0, kInputs, 3, kOutputs, 1, &create_kernel<LinearKernel<LinearEpilogue::none, true, 1>>};

const Operator kLinearNoBias = {"LinearNoBias",
                                1,
                                nullptr,
                                0,
                                kInputs,
                                2,
                                kOutputs,
                                1,
                                &create_kernel<LinearKernel<LinearEpilogue::none, false, 1>>};

const Operator kLinearGelu = {
    "LinearGelu", 1, nullptr, 0, kInputs, 3, kOutputs, 1, &create_kernel<LinearKernel<LinearEpilogue::gelu, true, 1>>};

const Operator kLinearGatedResidual = {"LinearGatedResidual",
                                       1,
                                       kGateAt,
                                       1,
                                       kInputs,
                                       5,
                                       kOutputs,
                                       1,
                                       &create_kernel<LinearKernel<LinearEpilogue::gated_residual, true, 1>>};

const Operator kLinear2GatedResidual = {"Linear2GatedResidual",
                                        1,
                                        kGateAt,
                                        1,
                                        kInputs2,
                                        6,
                                        kOutputs,
                                        1,
                                        &create_kernel<LinearKernel<LinearEpilogue::gated_residual, true, 2>>};

}  // namespace vitrify
