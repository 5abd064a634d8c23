// ONNX Runtime's door: wraps every operator of ops.cpp as a custom op of the domain `vitrify`.
#if defined(VITRIFY_OFFICIAL_ORT_HEADER)
#include <onnxruntime_c_api.h>
#else
#include "native/ort_abi.h"
#endif

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>

#include "native/c_interface.h"
#include "native/operator.h"

#define VITRIFY_ASSERT_SLOT(name, slot) \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(void*), "OrtApi::" #name " is not in its slot")
VITRIFY_ASSERT_SLOT(CreateStatus, 0);
VITRIFY_ASSERT_SLOT(CreateCustomOpDomain, 26);
VITRIFY_ASSERT_SLOT(CustomOpDomain_Add, 27);
VITRIFY_ASSERT_SLOT(AddCustomOpDomain, 28);
VITRIFY_ASSERT_SLOT(GetTensorMutableData, 51);
VITRIFY_ASSERT_SLOT(CreateTensorTypeAndShapeInfo, 57);
VITRIFY_ASSERT_SLOT(SetTensorElementType, 58);
VITRIFY_ASSERT_SLOT(SetDimensions, 59);
VITRIFY_ASSERT_SLOT(GetDimensionsCount, 61);
VITRIFY_ASSERT_SLOT(GetDimensions, 62);
VITRIFY_ASSERT_SLOT(GetSymbolicDimensions, 63);
VITRIFY_ASSERT_SLOT(GetTensorTypeAndShape, 65);
VITRIFY_ASSERT_SLOT(KernelContext_GetInput, 90);
VITRIFY_ASSERT_SLOT(KernelContext_GetOutput, 91);
VITRIFY_ASSERT_SLOT(ReleaseStatus, 93);
VITRIFY_ASSERT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
VITRIFY_ASSERT_SLOT(ShapeInferContext_GetInputTypeShape, 268);
VITRIFY_ASSERT_SLOT(ShapeInferContext_SetOutputTypeShape, 270);
VITRIFY_ASSERT_SLOT(SetSymbolicDimensions, 271);
VITRIFY_ASSERT_SLOT(KernelContext_ParallelFor, 274);
static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "OrtCustomOp has 26 words");
static_assert(offsetof(OrtCustomOp, KernelComputeV2) == 18 * sizeof(void*), "KernelComputeV2 is word 18");
static_assert(offsetof(OrtCustomOp, InferOutputShapeFn) == 19 * sizeof(void*), "InferOutputShapeFn is word 19");

namespace vitrify {
namespace {

// The version whose table and struct are used, whatever the header that was compiled against knows beyond it.
constexpr uint32_t kApiVersion = 18;

// Enough for any operator of ours; ops.cpp is where one would outgrow it.
constexpr int kMaxTensors = 16;

// A custom op that knows its operator; `ort` comes first, so that a pointer to it is one to the whole.
struct WrappedOperator {
  OrtCustomOp ort = {};
  const Operator* op = nullptr;
  const OrtApi* api = nullptr;
};

const WrappedOperator& wrapped(const OrtCustomOp* op) {
  return *reinterpret_cast<const WrappedOperator*>(op);
}

// A failed call's status, handed on as an exception within this file alone.
struct Failed {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status != nullptr) throw Failed{status};
}

[[noreturn]] void fail(const OrtApi& api, const std::string& message) {
  throw Failed{api.CreateStatus(ORT_INVALID_ARGUMENT, message.c_str())};
}

// Runs `body` and turns whatever it throws into a status: nothing may unwind into ONNX Runtime.
template <typename Body>
OrtStatus* guarded(const OrtApi& api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::float16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::bfloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::int8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case DType::uint8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DType::int32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::int64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

std::string where(const Operator& op, const TensorContract& tensor) {
  return std::string(op.name) + ": " + tensor.name;
}

// A dimension of the contract: its size, negative while unknown, and the model's own name for it, if any.
struct Dimension {
  const char* dim = "";
  int64_t size = -1;
  const char* symbol = "";
};

// What an operator's dimensions are, learned from its inputs one by one.
class Dimensions {
 public:
  // Raises if `size` contradicts the contract or what another input said.
  void learn(const OrtApi& api, const Operator& op, const TensorContract& tensor, int axis, int64_t size,
             const char* symbol = "") {
    Dimension& known = at(tensor.dims[axis]);
    if (size >= 0 && known.size >= 0 && known.size != size) {
      fail(api, where(op, tensor) + " has " + std::to_string(size) + " along " + known.dim + ", expected " +
                    std::to_string(known.size));
    }
    if (size >= 0) known.size = size;
    if (known.symbol[0] == '\0') known.symbol = symbol;
  }

  Dimension& at(const char* dim) {
    for (int i = 0; i < count_; ++i) {
      if (std::strcmp(rows_[i].dim, dim) == 0) return rows_[i];
    }
    Dimension& fresh = rows_[count_++];
    fresh.dim = dim;
    fresh.size = dim[0] >= '0' && dim[0] <= '9' ? std::atoll(dim) : -1;
    return fresh;
  }

 private:
  Dimension rows_[kMaxTensors * kMaxRank];
  int count_ = 0;
};

// A type-and-shape object that is released at the end of its scope.
class OwnedShape {
 public:
  explicit OwnedShape(const OrtApi& api) : api_(api) {}
  ~OwnedShape() { api_.ReleaseTensorTypeAndShapeInfo(info_); }
  OwnedShape(const OwnedShape&) = delete;
  OwnedShape& operator=(const OwnedShape&) = delete;
  OrtTensorTypeAndShapeInfo** out() { return &info_; }
  OrtTensorTypeAndShapeInfo* get() const { return info_; }

  // Reads `rank` sizes; raises if the tensor has another rank.
  void read(const Operator& op, const TensorContract& tensor, int64_t* dims) const {
    size_t rank = 0;
    check(api_.GetDimensionsCount(info_, &rank));
    if (rank != static_cast<size_t>(tensor.rank)) {
      fail(api_, where(op, tensor) + " has rank " + std::to_string(rank) + ", expected " + std::to_string(tensor.rank));
    }
    check(api_.GetDimensions(info_, dims, rank));
  }

 private:
  const OrtApi& api_;
  OrtTensorTypeAndShapeInfo* info_ = nullptr;
};

void run_on_pool(const void* context, size_t count, Task task, void* state) {
  const void* const* pool = static_cast<const void* const*>(context);
  const OrtApi& api = *static_cast<const OrtApi*>(pool[0]);
  check(api.KernelContext_ParallelFor(static_cast<const OrtKernelContext*>(pool[1]), task, count, 0, state));
}

void compute(const WrappedOperator& self, OrtKernelContext* context) {
  const OrtApi& api = *self.api;
  const Operator& op = *self.op;
  Tensor inputs[kMaxTensors];
  Tensor outputs[kMaxTensors];
  Dimensions dimensions;
  for (int i = 0; i < op.input_count; ++i) {
    const OrtValue* value = nullptr;
    check(api.KernelContext_GetInput(context, static_cast<size_t>(i), &value));
    OwnedShape shape(api);
    check(api.GetTensorTypeAndShape(value, shape.out()));
    shape.read(op, op.inputs[i], inputs[i].dims);
    for (int axis = 0; axis < op.inputs[i].rank; ++axis) {
      dimensions.learn(api, op, op.inputs[i], axis, inputs[i].dims[axis]);
    }
    check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &inputs[i].data));
  }
  for (int i = 0; i < op.output_count; ++i) {
    const TensorContract& tensor = op.outputs[i];
    for (int axis = 0; axis < tensor.rank; ++axis) {
      outputs[i].dims[axis] = dimensions.at(tensor.dims[axis]).size;
    }
    OrtValue* value = nullptr;
    check(api.KernelContext_GetOutput(context, static_cast<size_t>(i), outputs[i].dims,
                                      static_cast<size_t>(tensor.rank), &value));
    check(api.GetTensorMutableData(value, &outputs[i].data));
  }
  const void* pool[2] = {&api, context};
  op.run(inputs, outputs, Parallel(&run_on_pool, pool));
}

// Gives each output the sizes and names that the inputs have for its dimensions, as far as they are known.
void infer(const WrappedOperator& self, OrtShapeInferContext* context) {
  const OrtApi& api = *self.api;
  const Operator& op = *self.op;
  Dimensions dimensions;
  for (int i = 0; i < op.input_count; ++i) {
    const TensorContract& tensor = op.inputs[i];
    const auto rank = static_cast<size_t>(tensor.rank);
    OrtTensorTypeAndShapeInfo* shape = nullptr;  // Lent: the context owns it.
    size_t actual = 0;
    check(api.ShapeInferContext_GetInputTypeShape(context, static_cast<size_t>(i), &shape));
    check(api.GetDimensionsCount(shape, &actual));
    if (actual != rank) continue;  // Unknown so far; a wrong rank is found when the node runs.
    int64_t sizes[kMaxRank];
    const char* symbols[kMaxRank] = {};
    check(api.GetDimensions(shape, sizes, rank));
    check(api.GetSymbolicDimensions(shape, symbols, rank));
    for (int axis = 0; axis < tensor.rank; ++axis) {
      dimensions.learn(api, op, tensor, axis, sizes[axis], symbols[axis] == nullptr ? "" : symbols[axis]);
    }
  }
  for (int i = 0; i < op.output_count; ++i) {
    const TensorContract& tensor = op.outputs[i];
    const auto rank = static_cast<size_t>(tensor.rank);
    int64_t dims[kMaxRank];
    const char* symbols[kMaxRank];
    bool known = true;
    for (size_t axis = 0; axis < rank; ++axis) {
      const Dimension& dimension = dimensions.at(tensor.dims[axis]);
      dims[axis] = dimension.size;
      symbols[axis] = dimension.size < 0 ? dimension.symbol : "";
      known = known && (dimension.size >= 0 || dimension.symbol[0] != '\0');
    }
    if (!known) continue;  // A size of -1 without a name would be taken for a size.
    OwnedShape shape(api);
    check(api.CreateTensorTypeAndShapeInfo(shape.out()));
    check(api.SetTensorElementType(shape.get(), element_type(tensor.dtype)));
    check(api.SetDimensions(shape.get(), dims, rank));
    check(api.SetSymbolicDimensions(shape.get(), symbols, rank));
    check(api.ShapeInferContext_SetOutputTypeShape(context, static_cast<size_t>(i), shape.get()));
  }
}

WrappedOperator wrap(const Operator& op, const OrtApi& api) {
  WrappedOperator self;
  self.op = &op;
  self.api = &api;
  OrtCustomOp& ort = self.ort;
  ort.version = kApiVersion;
  ort.GetName = [](const OrtCustomOp* custom) { return wrapped(custom).op->name; };
  ort.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  ort.GetInputTypeCount = [](const OrtCustomOp* custom) {
    return static_cast<size_t>(wrapped(custom).op->input_count);
  };
  ort.GetOutputTypeCount = [](const OrtCustomOp* custom) {
    return static_cast<size_t>(wrapped(custom).op->output_count);
  };
  ort.GetInputType = [](const OrtCustomOp* custom, size_t index) {
    return element_type(wrapped(custom).op->inputs[index].dtype);
  };
  ort.GetOutputType = [](const OrtCustomOp* custom, size_t index) {
    return element_type(wrapped(custom).op->outputs[index].dtype);
  };
  ort.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  ort.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  ort.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  ort.GetStartVersion = [](const OrtCustomOp* custom) { return wrapped(custom).op->version; };
  ort.GetEndVersion = [](const OrtCustomOp* custom) { return wrapped(custom).op->version; };
  ort.CreateKernelV2 = [](const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo*,
                          void** kernel) -> OrtStatusPtr {
    *kernel = const_cast<OrtCustomOp*>(custom);
    return nullptr;
  };
  ort.KernelDestroy = [](void*) {};
  ort.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const WrappedOperator& me = wrapped(static_cast<OrtCustomOp*>(kernel));
    return guarded(*me.api, [&] { compute(me, context); });
  };
  ort.InferOutputShapeFn = [](const OrtCustomOp* custom, OrtShapeInferContext* context) -> OrtStatusPtr {
    const WrappedOperator& me = wrapped(custom);
    // ONNX Runtime drops what comes back here: shapes that contradict each other are reported when the node runs.
    OrtStatus* status = guarded(*me.api, [&] { infer(me, context); });
    if (status != nullptr) me.api->ReleaseStatus(status);
    return nullptr;
  };
  return self;
}

// One domain for the life of the process, shared by all sessions: they keep pointers into it.
OrtCustomOpDomain* domain(const OrtApi& api) {
  static std::mutex mutex;
  static OrtCustomOpDomain* made = nullptr;
  static WrappedOperator operators[64];
  const std::lock_guard<std::mutex> lock(mutex);
  if (made == nullptr) {
    OrtCustomOpDomain* fresh = nullptr;
    check(api.CreateCustomOpDomain("vitrify", &fresh));
    for (int i = 0; i < kOperatorCount; ++i) {
      operators[i] = wrap(*kOperators[i], api);
      check(api.CustomOpDomain_Add(fresh, &operators[i].ort));
    }
    made = fresh;
  }
  return made;
}

}  // namespace
}  // namespace vitrify

// The symbol that SessionOptions.register_custom_ops_library looks for.
VITRIFY_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(vitrify::kApiVersion);
  if (api == nullptr) {
    // Slot 0 of the oldest table is all that reporting needs.
    const std::string message =
        std::string("vitrify's operators need ONNX Runtime 1.18 or newer, this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  return vitrify::guarded(*api, [&] { vitrify::check(api->AddCustomOpDomain(options, vitrify::domain(*api))); });
}
