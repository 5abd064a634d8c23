#include <algorithm>
#include <string>

#include "attention/cpu.h"
#include "native/aligned.h"

namespace vitrify {
namespace {

// Most elements of packed keys and values at a time (32 MiB), unless a single head has more.
constexpr size_t kPackedAtOnce = 1 << 23;
// Below this many multiplications waking a pool costs more than it saves.
constexpr size_t kSmall = 1 << 19;

size_t parts_of(size_t size, size_t each) {
  return (size + each - 1) / each;
}

// A thread's scratch, kept as long as the thread.
float* scratch(size_t count) {
  thread_local Scratch memory;
  return memory.at_least(count);
}

// The heads' packed keys and values, of the thread that runs the operator.
float* packed(size_t count) {
  thread_local Scratch memory;
  return memory.at_least(count);
}

// Computes `count` heads. head(i) is the i-th; its packed_keys and packed_values are set here.
template <typename HeadAt>
void compute(AttentionPrecision precision, size_t count, const HeadAt& head_at, const Parallel& parallel) {
  const AttentionHead any = head_at(0);
  const AttentionShape shape = attention_shape_by_level.active()(precision, any.keys, any.head_dim);
  AttentionPack* const pack = attention_pack_by_level.active();
  AttentionRowsOf* const rows = attention_rows_by_level.active();
  const size_t size = shape.packed_keys + shape.packed_values;
  const size_t at_once = std::max<size_t>(1, std::min(count, kPackedAtOnce / size));
  const size_t slices = parts_of(any.keys, kAttentionSlice);
  const size_t chunks = parts_of(any.tokens, shape.rows);
  float* const memory = packed(at_once * size);

  for (size_t first = 0; first < count; first += at_once) {
    const size_t heads = std::min(at_once, count - first);
    const auto head = [&](size_t index) {
      AttentionHead one = head_at(first + index);
      one.packed_keys = memory + index * size;
      one.packed_values = one.packed_keys + shape.packed_keys;
      return one;
    };
    // A slice's heads one after the other: they lie side by side.
    parallel.for_each(heads * slices, [&](size_t task) {
      const size_t start = task / heads * kAttentionSlice;
      pack(precision, head(task % heads), start, std::min(start + kAttentionSlice, any.keys), scratch(shape.scratch));
    });
    parallel.for_each(heads * chunks, [&](size_t task) {
      rows(precision, head(task / chunks), task % chunks * shape.rows, scratch(shape.scratch));
    });
  }
}

[[noreturn]] void wrong_size(const char* tensor, int64_t size, const char* dim, int64_t expected,
                             const std::string& why) {
  throw OpError(std::string(tensor) + " has " + std::to_string(size) + " along " + dim + ", expected " +
                std::to_string(expected) + ", " + why);
}

template <AttentionPrecision precision, int parts, bool norm, bool bias>
class Attention final : public Kernel {
 public:
  explicit Attention(const Node& node) : heads_(node.integer("num_heads")), scale_(node.real("scale")) {
    if (heads_ < 1) throw OpError("attribute num_heads is " + std::to_string(heads_) + ", expected 1 or more");
    if (!(scale_ > 0)) {
      throw OpError("attribute scale is " + std::to_string(scale_) + ", expected above 0, as 1 / sqrt(head_dim)");
    }
    if (norm) {
      epsilon_ = node.real("epsilon");
      if (!(epsilon_ >= 0)) throw OpError("attribute epsilon is " + std::to_string(epsilon_) + ", expected 0 or more");
    } else if (!bias) {
      const int64_t causal = node.integer("causal");
      if (causal != 0 && causal != 1) {
        throw OpError("attribute causal is " + std::to_string(causal) + ", expected 0 or 1");
      }
      causal_ = causal == 1;
    }
  }

  void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const override {
    AttentionHead first;
    check(inputs, first);
    const auto heads = static_cast<size_t>(heads_);
    const auto batch = static_cast<size_t>(inputs[0].dims[0]);
    if (batch == 0 || first.tokens == 0) return;
    for (int part = 0; part < parts; ++part) {
      AttentionPart& to = first.parts[part];
      to.q = inputs[3 * part].as<const float>();
      to.k = inputs[3 * part + 1].as<const float>();
      to.v = inputs[3 * part + 2].as<const float>();
      to.out = outputs[part].as<float>();
      if (!norm) continue;
      to.q_norm = inputs[3 * parts + 2 * part].as<const float>();
      to.k_norm = inputs[3 * parts + 2 * part + 1].as<const float>();
    }
    if (norm) {
      first.cos = inputs[5 * parts].as<const float>();
      first.sin = inputs[5 * parts + 1].as<const float>();
    }
    if (bias) first.bias = inputs[3].as<const float>();

    const bool small = 2 * batch * first.tokens * first.keys * first.width < kSmall;
    compute(
        precision, batch * heads,
        [&](size_t index) {
          const size_t row = index / heads;
          const size_t column = index % heads * first.head_dim;
          AttentionHead head = first;
          for (AttentionPart& part : head.parts) {
            if (part.q == nullptr) continue;
            part.q += row * part.tokens * head.width + column;
            part.k += row * part.keys * head.width + column;
            part.v += row * part.keys * head.width + column;
            part.out += row * part.tokens * head.width + column;
          }
          if (bias) head.bias += index % heads * head.tokens * head.keys;
          return head;
        },
        small ? Parallel() : parallel);
  }

 private:
  // Holds the sizes against each other as the contract's names cannot, and puts them into `head`.
  void check(const Tensor* inputs, AttentionHead& head) const {
    constexpr auto kMost = static_cast<int64_t>(kAttentionMaxHeadDim);
    const int64_t width = inputs[0].dims[2];
    const char* const q = parts == 1 ? "q" : "q_0";
    const std::string of_heads = " (num_heads = " + std::to_string(heads_) + ")";
    if (width % heads_ != 0) {
      throw OpError(std::string(q) + " has " + std::to_string(width) +
                    " along width, expected a multiple of the number of heads" + of_heads);
    }
    const int64_t head_dim = width / heads_;
    if (head_dim < 1 || head_dim > kMost) {
      throw OpError("head_dim is " + std::to_string(head_dim) + ", width " + std::to_string(width) + of_heads +
                    ", expected 1 to " + std::to_string(kMost));
    }
    int64_t tokens = 0;
    int64_t keys = 0;
    for (int part = 0; part < parts; ++part) {
      head.parts[part].tokens = static_cast<size_t>(inputs[3 * part].dims[1]);
      head.parts[part].keys = static_cast<size_t>(inputs[3 * part + 1].dims[1]);
      tokens += inputs[3 * part].dims[1];
      keys += inputs[3 * part + 1].dims[1];
    }
    if (tokens > 0 && keys == 0) throw OpError("k has 0 along keys, expected 1 or more: there is nothing to attend to");
    if (norm) {
      const int64_t of_norm = inputs[3 * parts].dims[0];
      const std::string per_head = "width / num_heads";
      if (of_norm != head_dim) wrong_size(parts == 1 ? "q_norm" : "q_norm_0", of_norm, "head_dim", head_dim, per_head);
      const int64_t half = inputs[5 * parts].dims[1];
      if (head_dim % 2 != 0) {
        throw OpError("head_dim is " + std::to_string(head_dim) + ", expected an even number: rotary turns pairs");
      }
      if (half != head_dim / 2) wrong_size("cos", half, "half", head_dim / 2, "half of head_dim");
    }
    if (bias && inputs[3].dims[1] != heads_) wrong_size("bias", inputs[3].dims[1], "heads", heads_, "num_heads");
    head.tokens = static_cast<size_t>(tokens);
    head.keys = static_cast<size_t>(keys);
    head.head_dim = static_cast<size_t>(head_dim);
    head.width = static_cast<size_t>(width);
    head.scale = scale_;
    head.epsilon = epsilon_;
    head.causal = causal_;
  }

  int64_t heads_;
  float scale_;
  float epsilon_ = 0;
  bool causal_ = false;
};

constexpr TensorContract kInputs[] = {
    {"q", DType::float32, 3, {"batch", "tokens", "width"}},
    {"k", DType::float32, 3, {"batch", "keys", "width"}},
    {"v", DType::float32, 3, {"batch", "keys", "width"}},
    {"bias", DType::float32, 4, {"1", "heads", "tokens", "keys"}},
};
constexpr TensorContract kNormRotaryInputs[] = {
    {"q", DType::float32, 3, {"batch", "tokens", "width"}},
    {"k", DType::float32, 3, {"batch", "tokens", "width"}},
    {"v", DType::float32, 3, {"batch", "tokens", "width"}},
    {"q_norm", DType::float32, 1, {"head_dim"}},
    {"k_norm", DType::float32, 1, {"head_dim"}},
    {"cos", DType::float32, 2, {"tokens", "half"}},
    {"sin", DType::float32, 2, {"tokens", "half"}},
};
constexpr TensorContract kTwoPartInputs[] = {
    {"q_0", DType::float32, 3, {"batch", "tokens_0", "width"}},
    {"k_0", DType::float32, 3, {"batch", "tokens_0", "width"}},
    {"v_0", DType::float32, 3, {"batch", "tokens_0", "width"}},
    {"q_1", DType::float32, 3, {"batch", "tokens_1", "width"}},
    {"k_1", DType::float32, 3, {"batch", "tokens_1", "width"}},
    {"v_1", DType::float32, 3, {"batch", "tokens_1", "width"}},
    {"q_norm_0", DType::float32, 1, {"head_dim"}},
    {"k_norm_0", DType::float32, 1, {"head_dim"}},
    {"q_norm_1", DType::float32, 1, {"head_dim"}},
    {"k_norm_1", DType::float32, 1, {"head_dim"}},
    {"cos", DType::float32, 2, {"tokens_0 + tokens_1", "half"}},
    {"sin", DType::float32, 2, {"tokens_0 + tokens_1", "half"}},
};
constexpr TensorContract kOutputs[] = {
    {"out", DType::float32, 3, {"batch", "tokens", "width"}},
};
constexpr TensorContract kTwoPartOutputs[] = {
    {"out_0", DType::float32, 3, {"batch", "tokens_0", "width"}},
    {"out_1", DType::float32, 3, {"batch", "tokens_1", "width"}},
};
constexpr AttributeContract kNumHeads = {"num_heads", AttributeKind::integer, true, 0};
constexpr AttributeContract kScale = {"scale", AttributeKind::real, true, 0};
constexpr AttributeContract kEpsilon = {"epsilon", AttributeKind::real, true, 0};
constexpr AttributeContract kCausal = {"causal", AttributeKind::integer, true, 0};
constexpr AttributeContract kAttributes[] = {kNumHeads, kScale};
constexpr AttributeContract kCausalAttributes[] = {kNumHeads, kScale, kCausal};
constexpr AttributeContract kNormAttributes[] = {kNumHeads, kScale, kEpsilon};

template <AttentionPrecision precision, int parts, bool norm, bool bias>
constexpr Operator operator_of(const char* name) {
  const AttributeContract* const attributes = norm ? kNormAttributes : bias ? kAttributes : kCausalAttributes;
  const TensorContract* const inputs = parts == 2 ? kTwoPartInputs : norm ? kNormRotaryInputs : kInputs;
  return {name,
          1,
          attributes,
          bias ? 2 : 3,
          inputs,
          parts == 2 ? 12
          : norm     ? 7
          : bias     ? 4
                     : 3,
          parts == 2 ? kTwoPartOutputs : kOutputs,
          parts,
          &create_kernel<Attention<precision, parts, norm, bias>>};
}

constexpr AttentionPrecision kFloat32 = AttentionPrecision::float32;
constexpr AttentionPrecision kBf16 = AttentionPrecision::bfloat16;

}  // namespace

const Operator kFusedAttention = operator_of<kFloat32, 1, false, false>("FusedAttention");
const Operator kFusedAttentionBias = operator_of<kFloat32, 1, false, true>("FusedAttentionBias");
const Operator kFusedAttentionNormRotary = operator_of<kFloat32, 1, true, false>("FusedAttentionNormRotary");
const Operator kFusedAttention2NormRotary = operator_of<kFloat32, 2, true, false>("FusedAttention2NormRotary");

const Operator kFusedAttentionBf16 = operator_of<kBf16, 1, false, false>("FusedAttentionBf16");
const Operator kFusedAttentionBiasBf16 = operator_of<kBf16, 1, false, true>("FusedAttentionBiasBf16");
const Operator kFusedAttentionNormRotaryBf16 = operator_of<kBf16, 1, true, false>("FusedAttentionNormRotaryBf16");
const Operator kFusedAttention2NormRotaryBf16 = operator_of<kBf16, 2, true, false>("FusedAttention2NormRotaryBf16");

}  // namespace vitrify
