// An operator as data: what it takes and gives, and the kernel that computes it. No framework's headers here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "native/parallel.h"

namespace vitrify {

constexpr int kMaxRank = 6;
constexpr int kMaxTensors = 16;  // Of one operator, inputs and outputs each.
constexpr int kMaxAttributes = 8;
constexpr int kMaxDTypes = 3;

enum class DType { float32, float16, bfloat16, int8, uint8, int32, int64 };

const char* dtype_name(DType dtype);
size_t dtype_size(DType dtype);

// What a caller did wrong, in words that name the tensor or attribute; the operator's name is put before it.
class OpError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The dtypes that a tensor may have. Where there are several, the kernel is told which one its node has.
struct DTypes {
  DType of[kMaxDTypes];
  int count;
  constexpr DTypes(DType one) : of{one, one, one}, count(1) {}
  constexpr DTypes(DType a, DType b, DType c) : of{a, b, c}, count(3) {}
};

// dims: names, fixed sizes written as digits, or sums of names ("t_0 + t_1") whose terms stand alone in some input.
// Equal names mean equal sizes over all inputs and outputs.
struct TensorContract {
  const char* name;
  DTypes dtypes;
  int rank;
  const char* dims[kMaxRank];
};

enum class AttributeKind { integer, real };

struct AttributeContract {
  const char* name;
  AttributeKind kind;
  bool required;
  double otherwise;  // The value of one that is not given; unused where required.
};

struct Tensor {
  void* data = nullptr;
  int64_t dims[kMaxRank] = {};
  DType dtype = DType::float32;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Used by several threads at once: a kernel changes nothing of itself while it runs.
class Kernel {
 public:
  virtual ~Kernel() = default;
  // Inputs and outputs are dense, shaped as the contract says, and no output overlaps another tensor.
  // Throws OpError before it has written anything.
  virtual void run(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel) const = 0;
};

struct Operator;

// A node of a graph, as a kernel sees it when it is made.
struct Node {
  const Operator* op = nullptr;
  double attributes[kMaxAttributes] = {};  // In the operator's order.
  // The inputs that are the same in every run, null for the others. Shaped as the contract says; the data outlive the
  // kernel, in memory that may be handed back to the system if it is a file's (native/pages.h).
  const Tensor* constants[kMaxTensors] = {};

  int64_t integer(const char* attribute) const { return static_cast<int64_t>(value(attribute)); }
  float real(const char* attribute) const { return static_cast<float>(value(attribute)); }

 private:
  double value(const char* attribute) const;
};

using Create = std::unique_ptr<Kernel> (*)(const Node& node);

// For an Operator's `create`: K has a constructor from a Node.
template <typename K>
std::unique_ptr<Kernel> create_kernel(const Node& node) {
  return std::make_unique<K>(node);
}

struct Operator {
  const char* name;
  int version;
  const AttributeContract* attributes;
  int attribute_count;
  const TensorContract* inputs;
  int input_count;
  const TensorContract* outputs;
  int output_count;
  Create create;
  bool cpu_alone = false;  // There is no GPU kernel for it.
};

// Throws OpError unless every integer is whole and such as a double holds exactly, and every real a finite float.
// values: in the operator's order.
void check_attributes(const Operator& op, const double* values);

// All operators of this library (ops.cpp).
extern const Operator* const kOperators[];
extern const int kOperatorCount;

}  // namespace vitrify
