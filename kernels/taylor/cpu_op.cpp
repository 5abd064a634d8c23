#include "native/rows.h"
#include "taylor/cpu.h"

namespace vitrify {
namespace {

template <typename Span, typename Problem>
void for_elements(Span* span, const Problem& problem, const Tensor& like, const Parallel& parallel) {
  const size_t width = static_cast<size_t>(like.dims[2]);
  for_rows(static_cast<size_t>(like.dims[0] * like.dims[1]), width, parallel,
           [&](size_t first, size_t last) { span(problem, first * width, last * width); });
}

template <int order, const PerLevel<TaylorUpdateSpan>& span_by_level>
class TaylorUpdate final : public Kernel {
 public:
  explicit TaylorUpdate(const Node&) {}
  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    TaylorUpdateProblem problem;
    problem.y = inputs[0].as<const float>();
    for (int i = 0; i < order; ++i) {
      problem.f[i] = inputs[1 + i].as<const float>();
      problem.inverse[i] = inputs[1 + order].as<const float>()[i];
    }
    for (int i = 0; i <= order; ++i)
      problem.g[i] = outputs[i].as<float>();
    for_elements(span_by_level.active(), problem, inputs[0], parallel);
  }
};

template <int order, const PerLevel<TaylorPredictSpan>& span_by_level>
class TaylorPredict final : public Kernel {
 public:
  explicit TaylorPredict(const Node&) {}
  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    TaylorPredictProblem problem;
    for (int i = 0; i <= order; ++i)
      problem.f[i] = inputs[i].as<const float>();
    for (int i = 0; i < order; ++i)
      problem.ahead[i] = inputs[1 + order].as<const float>()[i];
    problem.y = outputs[0].as<float>();
    for_elements(span_by_level.active(), problem, inputs[0], parallel);
  }
};

constexpr TensorContract held(const char* name) {
  return {name, DType::float32, 3, {"batch", "tokens", "width"}};
}
constexpr TensorContract scalars(const char* name, const char* count) {
  return {name, DType::float32, 1, {count}};
}

constexpr TensorContract kUpdate1[] = {held("y"), held("f0"), scalars("inverse", "1")};
constexpr TensorContract kUpdate2[] = {held("y"), held("f0"), held("f1"), scalars("inverse", "2")};
constexpr TensorContract kUpdated[] = {held("g0"), held("g1"), held("g2")};
constexpr TensorContract kPredict1[] = {held("f0"), held("f1"), scalars("ahead", "1")};
constexpr TensorContract kPredict2[] = {held("f0"), held("f1"), held("f2"), scalars("ahead", "2")};
constexpr TensorContract kPredicted[] = {held("y")};

template <typename K>
constexpr Operator taylor(const char* name, const TensorContract* inputs, int input_count,
                          const TensorContract* outputs, int output_count) {
  return {name, 1, nullptr, 0, inputs, input_count, outputs, output_count, &create_kernel<K>};
}

}  // namespace

const Operator kTaylorUpdate1 =
    taylor<TaylorUpdate<1, taylor_update_1_span_by_level>>("TaylorUpdate1", kUpdate1, 3, kUpdated, 2);
const Operator kTaylorUpdate2 =
    taylor<TaylorUpdate<2, taylor_update_2_span_by_level>>("TaylorUpdate2", kUpdate2, 4, kUpdated, 3);
const Operator kTaylorPredict1 =
    taylor<TaylorPredict<1, taylor_predict_1_span_by_level>>("TaylorPredict1", kPredict1, 3, kPredicted, 1);
const Operator kTaylorPredict2 =
    taylor<TaylorPredict<2, taylor_predict_2_span_by_level>>("TaylorPredict2", kPredict2, 4, kPredicted, 1);

}  // namespace vitrify
