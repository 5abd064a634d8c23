// The operators of this library: one line for each.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ada_layer_norm/cpu.h"
#include "attention/cpu.h"
#include "conv/cpu.h"
#include "gated_residual/cpu.h"
#include "linear/cpu.h"
#include "native/c_interface.h"
#include "native/operator.h"
#include "qk_norm_rope/cpu.h"
#include "residual_diff/cpu.h"
#include "taylor/cpu.h"

namespace vitrify {

const Operator* const kOperators[] = {
    &kAdaLayerNorm,
    &kAdaRMSNorm,
    &kConv2d,
    &kConv2dResidual,
    &kGroupNormSiluConv2d,
    &kGroupNormSiluConv2dResidual,
    &kUpsampleConv2d,
    &kConv2dBf16,
    &kConv2dResidualBf16,
    &kGroupNormSiluConv2dBf16,
    &kGroupNormSiluConv2dResidualBf16,
    &kUpsampleConv2dBf16,
    &kFusedAttention,
    &kFusedAttentionBias,
    &kFusedAttentionNormRotary,
    &kFusedAttention2NormRotary,
    &kFusedAttentionBf16,
    &kFusedAttentionBiasBf16,
    &kFusedAttentionNormRotaryBf16,
    &kFusedAttention2NormRotaryBf16,
    &kGatedResidual,
    &kLinear,
    &kLinearNoBias,
    &kLinearGelu,
    &kLinearGatedResidual,
    &kLinear2GatedResidual,
    &kLinearBf16,
    &kLinearNoBiasBf16,
    &kLinearGeluBf16,
    &kLinearGatedResidualBf16,
    &kLinear2GatedResidualBf16,
    &kLinearInt8,
    &kLinearNoBiasInt8,
    &kLinearGeluInt8,
    &kLinearGatedResidualInt8,
    &kLinear2GatedResidualInt8,
    &kQkNormRope,
    &kResidualDiff,
    &kTaylorUpdate1,
    &kTaylorUpdate2,
    &kTaylorPredict1,
    &kTaylorPredict2,
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

size_t dtype_size(DType dtype) {
  switch (dtype) {
    case DType::int8:
    case DType::uint8:
      return 1;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float32:
    case DType::int32:
      return 4;
    case DType::int64:
      return 8;
  }
  return 0;
}

void check_attributes(const Operator& op, const double* values) {
  constexpr double kExact = 9007199254740992.0;  // 2⁵³
  for (int i = 0; i < op.attribute_count; ++i) {
    const AttributeContract& attribute = op.attributes[i];
    const bool integer = attribute.kind == AttributeKind::integer;
    const double value = values[i];
    if (integer ? std::abs(value) < kExact && value == std::trunc(value) : std::isfinite(static_cast<float>(value))) {
      continue;
    }
    char number[32];
    std::snprintf(number, sizeof(number), "%.17g", value);
    throw OpError(std::string("attribute ") + attribute.name + " is " + number + ", expected " +
                  (integer ? "a whole number below 2^53" : "a finite float32"));
  }
}

double Node::value(const char* attribute) const {
  for (int i = 0; i < op->attribute_count; ++i) {
    if (std::strcmp(op->attributes[i].name, attribute) == 0) return attributes[i];
  }
  throw std::logic_error(std::string(op->name) + " has no attribute " + attribute);
}

namespace {

std::string describe(const TensorContract& tensor) {
  std::string text = std::string(tensor.name) + ": ";
  for (int i = 0; i < tensor.dtypes.count; ++i)
    text += std::string(i ? "|" : "") + dtype_name(tensor.dtypes.of[i]);
  text += "[";
  for (int axis = 0; axis < tensor.rank; ++axis)
    text += std::string(axis ? ", " : "") + tensor.dims[axis];
  return text + "]";
}

std::string describe(const TensorContract* tensors, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i)
    text += (i ? ", " : "") + describe(tensors[i]);
  return text + ")";
}

std::string describe(const AttributeContract& attribute) {
  std::string text = std::string(attribute.name) + (attribute.kind == AttributeKind::integer ? ": int" : ": float");
  if (attribute.required) return text;
  char number[32];
  std::snprintf(number, sizeof(number), " = %g", attribute.otherwise);
  return text + number;
}

std::string describe(const Operator& op) {
  std::string text;
  for (int i = 0; i < op.attribute_count; ++i)
    text += (i ? ", " : "{") + describe(op.attributes[i]);
  if (op.attribute_count) text += "} ";
  return text + describe(op.inputs, op.input_count) + " -> " + describe(op.outputs, op.output_count);
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
      lines += std::string(op.name) + " " + std::to_string(op.version) + " " + vitrify::describe(op) + "\n";
    }
    return lines;
  }();
  return text.c_str();
}

int vitrify_abi_version() {
  return 1;
}
