#include <algorithm>
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
    case DType::int8:
      return LinearWeightType::int8;
    default:
      return LinearWeightType::float32;
  }
}

// From this size on (2 MiB) y is written past the caches: the lines that it would push out are of more use there, and
// need not be read before they are written.
constexpr size_t kPastCaches = 1 << 19;

// How y is cut into tasks: tiles of rows by panels of columns.
struct Cut {
  size_t tiles;
  size_t panels;
};

// Below this many multiplications of words waking a pool costs more than it saves.
constexpr size_t kSmall = 1 << 19;
constexpr size_t kTasksPerThread = 2;

Cut cut(size_t tiles, size_t panels, size_t words, const LinearShape& shape, size_t threads) {
  Cut parts = {linear_parts(tiles, shape.rows / shape.tile_rows), linear_parts(panels, shape.panels)};
  if (threads < 2 || tiles * shape.tile_rows * panels * kLinearPanel * words < kSmall) return parts;
  // A few tasks for each thread and the same number for all, columns cut before rows: x is then copied more often,
  // but each part of the weight is read by fewer.
  const auto wanting = [&] {
    const size_t tasks = parts.tiles * parts.panels;
    return tasks < kTasksPerThread * threads || tasks % threads != 0;
  };
  while (wanting() && tiles >= (parts.tiles + 1) * shape.least_tiles)
    ++parts.tiles;
  while (wanting() && parts.panels < panels && parts.tiles * parts.panels < 2 * kTasksPerThread * threads)
    ++parts.panels;
  return parts;
}

template <LinearPrecision precision, LinearEpilogue epilogue, bool bias, int x_parts>
class LinearKernel final : public Kernel {
 public:
  explicit LinearKernel(const Node& node)
      : shape_at_(linear_shape_by_level.active()), span_(linear_span_by_level.active()) {
    const Tensor* weight = node.constants[x_parts];
    if (weight == nullptr) throw OpError("weight is not constant: it must be an initializer");
    out_ = static_cast<size_t>(weight->dims[0]);
    in_ = static_cast<size_t>(weight->dims[1]);
    if (precision == LinearPrecision::int8 && in_ > kLinearInt8Features) {
      throw OpError("weight has " + std::to_string(in_) + " features, expected at most " +
                    std::to_string(kLinearInt8Features) + " at int8");
    }
    type_ = weight_type(weight->dtype);
    packed_ = aligned_floats(linear_packed(out_, in_, shape_at_(precision, type_, in_, 1)));
    linear_pack_by_level.active()(precision, weight->data, type_, out_, in_, packed_.get());
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
    const Tensor* next = inputs + x_parts + 1;  // Behind the weight.
    problem.weight = packed_.get();
    problem.weight_type = type_;
    problem.epilogue = epilogue;
    if (precision == LinearPrecision::int8) problem.scale = next++->as<const float>();
    if (bias) problem.bias = next++->as<const float>();
    if (epilogue == LinearEpilogue::gated_residual) {
      const Tensor& modulation = *next++;
      const int64_t columns = modulation.dims[1];
      if (gate_at_ + static_cast<int64_t>(out_) > columns) {
        throw OpError("modulation has " + std::to_string(columns) + " along columns, expected at least " +
                      std::to_string(gate_at_) + " (gate_at) + " + std::to_string(out_) + " (out)");
      }
      problem.gate = modulation.as<const float>() + gate_at_;
      problem.gate_stride = static_cast<size_t>(columns);
      problem.residual = next->as<const float>();
    }
    problem.y = outputs[0].as<float>();
    problem.tokens = static_cast<size_t>(inputs[0].dims[1]);
    problem.rows = static_cast<size_t>(inputs[0].dims[0]) * problem.tokens;
    problem.out = out_;
    problem.past_caches = problem.rows * problem.out >= kPastCaches;
    if (problem.rows == 0 || problem.out == 0) return;

    const LinearShape shape = shape_at_(precision, type_, in_, problem.tokens);
    const size_t panels = linear_panels(out_);
    const size_t tiles = (problem.rows + shape.tile_rows - 1) / shape.tile_rows;
    const Cut parts = cut(tiles, panels, linear_words(in_, shape), shape, parallel.threads());
    parallel.for_each(parts.tiles * parts.panels, [&](size_t task) {
      const size_t tile = linear_cut(tiles, task % parts.tiles, parts.tiles);
      const size_t tile_end = linear_cut(tiles, task % parts.tiles + 1, parts.tiles);
      const size_t row = tile * shape.tile_rows;
      const size_t row_end = std::min(tile_end * shape.tile_rows, problem.rows);
      const size_t panel = linear_cut(panels, task / parts.tiles, parts.panels);
      const size_t panel_end = linear_cut(panels, task / parts.tiles + 1, parts.panels);
      span_(precision, problem, row, row_end - row, panel, panel_end - panel, scratch());
    });
  }

 private:
  LinearShapeAt* shape_at_;  // Of the level at which the weight was packed, as is span_.
  LinearSpan* span_;
  LinearWeightType type_ = LinearWeightType::float32;
  AlignedFloats packed_;
  size_t out_ = 0;
  size_t in_ = 0;
  int64_t gate_at_ = 0;
};

constexpr DTypes kStored = {DType::float32, DType::bfloat16, DType::float16};
constexpr AttributeContract kGateAt[] = {
    {"gate_at", AttributeKind::integer, true, 0},
};

constexpr TensorContract kX = {"x", DType::float32, 3, {"batch", "tokens", "in"}};
constexpr TensorContract kX0 = {"x_0", DType::float32, 3, {"batch", "tokens", "in_0"}};
constexpr TensorContract kX1 = {"x_1", DType::float32, 3, {"batch", "tokens", "in_1"}};
constexpr TensorContract kWeight = {"weight", kStored, 2, {"out", "in"}};
constexpr TensorContract kWeight2 = {"weight", kStored, 2, {"out", "in_0 + in_1"}};
constexpr TensorContract kWeightInt8 = {"weight", DType::int8, 2, {"out", "in"}};
constexpr TensorContract kWeight2Int8 = {"weight", DType::int8, 2, {"out", "in_0 + in_1"}};
constexpr TensorContract kScale = {"weight_scale", DType::float32, 1, {"out"}};
constexpr TensorContract kBias = {"bias", DType::float32, 1, {"out"}};
constexpr TensorContract kModulation = {"modulation", DType::float32, 2, {"batch", "columns"}};
constexpr TensorContract kResidual = {"residual", DType::float32, 3, {"batch", "tokens", "out"}};

constexpr TensorContract kInputs[] = {kX, kWeight, kBias, kModulation, kResidual};
constexpr TensorContract kInputs2[] = {kX0, kX1, kWeight2, kBias, kModulation, kResidual};
constexpr TensorContract kInputsInt8[] = {kX, kWeightInt8, kScale, kBias, kModulation, kResidual};
constexpr TensorContract kInputs2Int8[] = {kX0, kX1, kWeight2Int8, kScale, kBias, kModulation, kResidual};
constexpr TensorContract kOutputs[] = {
    {"y", DType::float32, 3, {"batch", "tokens", "out"}},
};

template <LinearPrecision precision, LinearEpilogue epilogue, bool bias, int x_parts>
constexpr Operator operator_of(const char* name) {
  constexpr bool kInt8 = precision == LinearPrecision::int8;
  constexpr bool kGated = epilogue == LinearEpilogue::gated_residual;
  const TensorContract* inputs = x_parts == 2 ? (kInt8 ? kInputs2Int8 : kInputs2) : (kInt8 ? kInputsInt8 : kInputs);
  const int count = x_parts + 1 + (kInt8 ? 1 : 0) + (bias ? 1 : 0) + (kGated ? 2 : 0);
  return {name,     1,      kGated ? kGateAt : nullptr,
          kGated,   inputs, count,
          kOutputs, 1,      &create_kernel<LinearKernel<precision, epilogue, bias, x_parts>>};
}

constexpr LinearPrecision kFloat32 = LinearPrecision::float32;
constexpr LinearPrecision kBf16 = LinearPrecision::bfloat16;
constexpr LinearPrecision kInt8 = LinearPrecision::int8;
constexpr LinearEpilogue kNone = LinearEpilogue::none;
constexpr LinearEpilogue kGelu = LinearEpilogue::gelu;
constexpr LinearEpilogue kGated = LinearEpilogue::gated_residual;

}  // namespace

const Operator kLinear = operator_of<kFloat32, kNone, true, 1>("Linear");
const Operator kLinearNoBias = operator_of<kFloat32, kNone, false, 1>("LinearNoBias");
const Operator kLinearGelu = operator_of<kFloat32, kGelu, true, 1>("LinearGelu");
const Operator kLinearGatedResidual = operator_of<kFloat32, kGated, true, 1>("LinearGatedResidual");
const Operator kLinear2GatedResidual = operator_of<kFloat32, kGated, true, 2>("Linear2GatedResidual");

const Operator kLinearBf16 = operator_of<kBf16, kNone, true, 1>("LinearBf16");
const Operator kLinearNoBiasBf16 = operator_of<kBf16, kNone, false, 1>("LinearNoBiasBf16");
const Operator kLinearGeluBf16 = operator_of<kBf16, kGelu, true, 1>("LinearGeluBf16");
const Operator kLinearGatedResidualBf16 = operator_of<kBf16, kGated, true, 1>("LinearGatedResidualBf16");
const Operator kLinear2GatedResidualBf16 = operator_of<kBf16, kGated, true, 2>("Linear2GatedResidualBf16");

const Operator kLinearInt8 = operator_of<kInt8, kNone, true, 1>("LinearInt8");
const Operator kLinearNoBiasInt8 = operator_of<kInt8, kNone, false, 1>("LinearNoBiasInt8");
const Operator kLinearGeluInt8 = operator_of<kInt8, kGelu, true, 1>("LinearGeluInt8");
const Operator kLinearGatedResidualInt8 = operator_of<kInt8, kGated, true, 1>("LinearGatedResidualInt8");
const Operator kLinear2GatedResidualInt8 = operator_of<kInt8, kGated, true, 2>("Linear2GatedResidualInt8");

}  // namespace vitrify
