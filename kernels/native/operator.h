// An operator as data: what it takes and gives, and the function that computes it. No framework's headers here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "native/parallel.h"

namespace vitrify {

constexpr int kMaxRank = 6;

enum class DType { float32, float16, bfloat16, int8, uint8, int32, int64 };

// dims: names, or fixed sizes written as digits. Equal names mean equal sizes over all inputs and outputs.
struct TensorContract {
  const char* name;
  DType dtype;
  int rank;
  const char* dims[kMaxRank];
};

struct Tensor {
  void* data = nullptr;
  int64_t dims[kMaxRank] = {};

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Inputs and outputs are dense, shaped as the contract says, and do not overlap.
using Run = void (*)(const Tensor* inputs, const Tensor* outputs, const Parallel& parallel);

struct Operator {
  const char* name;
  int version;
  const TensorContract* inputs;
  int input_count;
  const TensorContract* outputs;
  int output_count;
  Run run;
};

// All operators of this library (ops.cpp).
extern const Operator* const kOperators[];
extern const int kOperatorCount;

const char* dtype_name(DType dtype);

}  // namespace vitrify
