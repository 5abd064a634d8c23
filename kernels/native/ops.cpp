// The operators of this library: one line for each.
#include <string>

#include "native/c_interface.h"
#include "native/operator.h"
#include "residual_diff/cpu.h"

namespace vitrify {

const Operator* const kOperators[] = {
    &kResidualDiff,
};
const int kOperatorCount = static_cast<int>(sizeof(kOperators) / sizeof(kOperators[0]));

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::int8:
      return "int8";
    case DType::uint8:
      return "uint8";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
  }
  return "unknown";
}

namespace {

std::string describe(const TensorContract* tensors, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) {
    text += std::string(i ? ", " : "") + tensors[i].name + ": " + dtype_name(tensors[i].dtype) + "[";
    for (int axis = 0; axis < tensors[i].rank; ++axis) {
      text += std::string(axis ? ", " : "") + tensors[i].dims[axis];
    }
    text += "]";
  }
  return text + ")";
}

}  // namespace
}  // namespace vitrify

const char* vitrify_ops() {
  static const std::string text = [] {
    std::string lines;
    for (int i = 0; i < vitrify::kOperatorCount; ++i) {
      const vitrify::Operator& op = *vitrify::kOperators[i];
      lines += std::string(op.name) + " " + std::to_string(op.version) + "\n";
    }
    return lines;
  }();
  return text.c_str();
}

const char* vitrify_op_signatures() {
  static const std::string text = [] {
    std::string lines;
    for (int i = 0; i < vitrify::kOperatorCount; ++i) {
      const vitrify::Operator& op = *vitrify::kOperators[i];
      lines += std::string(op.name) + " " + std::to_string(op.version) + " " +
               vitrify::describe(op.inputs, op.input_count) + " -> " + vitrify::describe(op.outputs, op.output_count) +
               "\n";
    }
    return lines;
  }();
  return text.c_str();
}
