#include "native/shapes.h"

#include <algorithm>
#include <cstdlib>

namespace vitrify {
namespace {

[[noreturn]] void contradict(const TensorContract& tensor, int axis, int64_t size, int64_t expected) {
  throw OpError(std::string(tensor.name) + " has " + std::to_string(size) + " along " + tensor.dims[axis] +
                ", expected " + std::to_string(expected));
}

}  // namespace

Shapes::Shapes(const Operator& op)
    : op_(&op),
      inputs_(static_cast<size_t>(op.input_count * kMaxRank)),
      outputs_(static_cast<size_t>(op.output_count * kMaxRank)) {
  for (int i = 0; i < op.input_count; ++i) {
    for (int axis = 0; axis < op.inputs[i].rank; ++axis) {
      inputs_[i * kMaxRank + axis] = parse(op.inputs[i].dims[axis]);
    }
  }
  for (int i = 0; i < op.output_count; ++i) {
    for (int axis = 0; axis < op.outputs[i].rank; ++axis) {
      outputs_[i * kMaxRank + axis] = parse(op.outputs[i].dims[axis]);
    }
  }
}

Extent Shapes::parse(const char* text) {
  Extent extent;
  if (text[0] >= '0' && text[0] <= '9') {
    extent.fixed = std::atoll(text);
    return extent;
  }
  const std::string separator = " + ";
  const std::string sum = text;
  for (size_t start = 0; start <= sum.size();) {
    const size_t stop = std::min(sum.find(separator, start), sum.size());
    const std::string name = sum.substr(start, stop - start);
    const auto found = std::find(names_.begin(), names_.end(), name);
    if (extent.terms == kMaxTerms) throw OpError("a dimension has more than three terms: " + sum);
    extent.dims[extent.terms++] = static_cast<int>(found - names_.begin());
    if (found == names_.end()) names_.push_back(name);
    start = stop + separator.size();
  }
  return extent;
}

void Sizes::learn(int input, const int64_t* dims) {
  const TensorContract& tensor = shapes_.op().inputs[input];
  for (int axis = 0; axis < tensor.rank; ++axis) {
    if (dims[axis] < 0) continue;
    const Extent& extent = shapes_.input(input, axis);
    if (extent.fixed >= 0 && extent.fixed != dims[axis]) contradict(tensor, axis, dims[axis], extent.fixed);
    if (extent.terms != 1) continue;
    int64_t& known = sizes_[extent.dims[0]];
    if (known >= 0 && known != dims[axis]) contradict(tensor, axis, dims[axis], known);
    known = dims[axis];
  }
}

void Sizes::check_sums(const Tensor* inputs) const {
  for (int i = 0; i < shapes_.op().input_count; ++i) {
    const TensorContract& tensor = shapes_.op().inputs[i];
    for (int axis = 0; axis < tensor.rank; ++axis) {
      const Extent& extent = shapes_.input(i, axis);
      if (extent.terms < 2) continue;
      const int64_t expected = of(extent);
      if (expected != inputs[i].dims[axis]) contradict(tensor, axis, inputs[i].dims[axis], expected);
    }
  }
}

int64_t Sizes::of(const Extent& extent) const {
  if (extent.terms == 0) return extent.fixed;
  int64_t sum = 0;
  for (int term = 0; term < extent.terms; ++term) {
    const int64_t size = sizes_[extent.dims[term]];
    if (size < 0) return -1;
    sum += size;
  }
  return sum;
}

}  // namespace vitrify
