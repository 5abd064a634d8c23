// ONNX Runtime's door: wraps every operator of ops.cpp as a custom op of the domain `vitrify`.
#if defined(VITRIFY_OFFICIAL_ORT_HEADER)
#include <onnxruntime_c_api.h>
#else
#include "native/ort_abi.h"
#endif

#include <algorithm>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "native/c_interface.h"
#include "native/gpu_library.h"
#include "native/operator.h"
#include "native/shapes.h"

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
VITRIFY_ASSERT_SLOT(GetTensorElementType, 60);
VITRIFY_ASSERT_SLOT(GetDimensionsCount, 61);
VITRIFY_ASSERT_SLOT(GetDimensions, 62);
VITRIFY_ASSERT_SLOT(GetSymbolicDimensions, 63);
VITRIFY_ASSERT_SLOT(GetTensorTypeAndShape, 65);
VITRIFY_ASSERT_SLOT(KernelInfoGetAttribute_float, 85);
VITRIFY_ASSERT_SLOT(KernelInfoGetAttribute_int64, 86);
VITRIFY_ASSERT_SLOT(KernelContext_GetInput, 90);
VITRIFY_ASSERT_SLOT(KernelContext_GetOutput, 91);
VITRIFY_ASSERT_SLOT(ReleaseStatus, 93);
VITRIFY_ASSERT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
VITRIFY_ASSERT_SLOT(KernelContext_GetGPUComputeStream, 193);
VITRIFY_ASSERT_SLOT(KernelInfo_GetNodeName, 244);
VITRIFY_ASSERT_SLOT(KernelInfoGetConstantInput_tensor, 249);
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

struct WrappedOperator;

// All custom ops of one name.
struct Family {
  explicit Family(const Operator& op) : shapes(op) {}
  Shapes shapes;
  std::deque<WrappedOperator> members;  // It does not move its elements when it grows.
};

// An operator with one choice of dtypes, on the CPU or on a GPU, as a custom op: ONNX Runtime picks among those of one
// name by dtype and provider. `ort` comes first, so that a pointer to it is one to the whole.
struct WrappedOperator {
  OrtCustomOp ort = {};
  const Family* family = nullptr;
  const Shapes* shapes = nullptr;
  const OrtApi* api = nullptr;
  bool cuda = false;          // A node of it is ONNX Runtime's for CUDA, not for the CPU.
  GpuKernels* gpu = nullptr;  // For CUDA; null where there is no kernel of ours:
  std::string refusal;        // then this says why.
  std::string activation;     // The dtype by which a GPU's kernels are chosen.
  DType inputs[kMaxTensors] = {};
  DType outputs[kMaxTensors] = {};

  const Operator& op() const { return shapes->op(); }
};

// A kernel of one node, as ONNX Runtime holds it.
struct NodeKernel {
  const WrappedOperator* wrapped;
  std::string where;                       // How messages begin: the operator, and the node's name where it has one.
  std::unique_ptr<Kernel> kernel;          // On the CPU.
  double attributes[kMaxAttributes] = {};  // In the operator's order.
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

// Runs `body` and turns whatever it throws into a status: nothing may unwind into ONNX Runtime.
template <typename Body>
OrtStatus* guarded(const OrtApi& api, const std::string& where, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const OpError& error) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, (where + ": " + error.what()).c_str());
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, (where + ": " + error.what()).c_str());
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

// A type-and-shape object that is released at the end of its scope.
class OwnedShape {
 public:
  explicit OwnedShape(const OrtApi& api) : api_(api) {}
  ~OwnedShape() { api_.ReleaseTensorTypeAndShapeInfo(info_); }
  OwnedShape(const OwnedShape&) = delete;
  OwnedShape& operator=(const OwnedShape&) = delete;
  OrtTensorTypeAndShapeInfo** out() { return &info_; }
  OrtTensorTypeAndShapeInfo* get() const { return info_; }

  // Reads `rank` sizes; throws if the tensor has another rank.
  void read(const TensorContract& tensor, int64_t* dims) const {
    size_t rank = 0;
    check(api_.GetDimensionsCount(info_, &rank));
    if (rank != static_cast<size_t>(tensor.rank)) {
      throw OpError(std::string(tensor.name) + " has rank " + std::to_string(rank) + ", expected " +
                    std::to_string(tensor.rank));
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

Tensor read_tensor(const OrtApi& api, const TensorContract& contract, DType dtype, const OrtValue* value) {
  Tensor tensor;
  tensor.dtype = dtype;
  OwnedShape shape(api);
  check(api.GetTensorTypeAndShape(value, shape.out()));
  shape.read(contract, tensor.dims);
  check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

// A call that may fail without harm.
bool succeeds(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return true;
  api.ReleaseStatus(status);
  return false;
}

double read_attribute(const OrtApi& api, const AttributeContract& attribute, const OrtKernelInfo* info) {
  int64_t integer = 0;
  float real = 0;
  const bool is_integer = succeeds(api, api.KernelInfoGetAttribute_int64(info, attribute.name, &integer));
  const bool is_real = succeeds(api, api.KernelInfoGetAttribute_float(info, attribute.name, &real));
  const bool wanted_integer = attribute.kind == AttributeKind::integer;
  if (wanted_integer ? is_integer : is_real) return wanted_integer ? static_cast<double>(integer) : real;
  if (is_integer || is_real) {
    throw OpError(std::string("attribute ") + attribute.name + " is " + (is_integer ? "an int" : "a float") +
                  ", expected " + (wanted_integer ? "an int" : "a float"));
  }
  if (attribute.required) throw OpError(std::string("attribute ") + attribute.name + " is missing");
  return attribute.otherwise;
}

std::string node_name(const OrtApi& api, const OrtKernelInfo* info) {
  char name[256];
  size_t size = sizeof(name);
  return succeeds(api, api.KernelInfo_GetNodeName(info, name, &size)) ? name : "";
}

void create(NodeKernel& me, const OrtKernelInfo* info) {
  const WrappedOperator& self = *me.wrapped;
  const OrtApi& api = *self.api;
  const Operator& op = self.op();
  if (!self.refusal.empty()) throw OpError(self.refusal);
  for (int i = 0; i < op.attribute_count; ++i)
    me.attributes[i] = read_attribute(api, op.attributes[i], info);
  check_attributes(op, me.attributes);
  if (self.gpu != nullptr) return;  // Its constants lie in GPU memory and are used as they are.
  Node node;
  node.op = &op;
  std::copy(me.attributes, me.attributes + op.attribute_count, node.attributes);
  Tensor constants[kMaxTensors];
  Sizes sizes(*self.shapes);
  for (int i = 0; i < op.input_count; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(api.KernelInfoGetConstantInput_tensor(info, static_cast<size_t>(i), &is_constant, &value));
    if (!is_constant) continue;
    constants[i] = read_tensor(api, op.inputs[i], self.inputs[i], value);
    sizes.learn(i, constants[i].dims);
    node.constants[i] = &constants[i];
  }
  me.kernel = op.create(node);
}

// The same node as a call of the launcher, on ONNX Runtime's stream.
void launch(const NodeKernel& me, const Sizes& sizes, const Tensor* inputs, const Tensor* outputs,
            const OrtKernelContext* context) {
  const WrappedOperator& self = *me.wrapped;
  const Operator& op = self.op();
  GpuCall call;
  call.op = op.name;
  call.version = op.version;
  call.activation = self.activation;
  for (size_t dim = 0; dim < self.shapes->names().size(); ++dim)
    call.numbers[self.shapes->names()[dim]] = sizes.of(static_cast<int>(dim));
  for (int i = 0; i < op.attribute_count; ++i) {
    const AttributeContract& attribute = op.attributes[i];
    if (attribute.kind == AttributeKind::integer) {
      call.numbers[attribute.name] = static_cast<int64_t>(me.attributes[i]);
    } else {
      call.reals[attribute.name] = me.attributes[i];
    }
  }
  for (int i = 0; i < op.input_count; ++i)
    call.tensors[op.inputs[i].name] = inputs[i].data;
  for (int i = 0; i < op.output_count; ++i)
    call.tensors[op.outputs[i].name] = outputs[i].data;
  void* stream = nullptr;
  check(self.api->KernelContext_GetGPUComputeStream(context, &stream));
  self.gpu->run_with_scratch(std::move(call), static_cast<cuda::Stream*>(stream));
}

void compute(const NodeKernel& me, OrtKernelContext* context) {
  const WrappedOperator& self = *me.wrapped;
  const OrtApi& api = *self.api;
  const Operator& op = self.op();
  Tensor inputs[kMaxTensors];
  Tensor outputs[kMaxTensors];
  Sizes sizes(*self.shapes);
  for (int i = 0; i < op.input_count; ++i) {
    const OrtValue* value = nullptr;
    check(api.KernelContext_GetInput(context, static_cast<size_t>(i), &value));
    inputs[i] = read_tensor(api, op.inputs[i], self.inputs[i], value);
    sizes.learn(i, inputs[i].dims);
  }
  sizes.check_sums(inputs);
  for (int i = 0; i < op.output_count; ++i) {
    const auto rank = static_cast<size_t>(op.outputs[i].rank);
    for (size_t axis = 0; axis < rank; ++axis) {
      outputs[i].dims[axis] = sizes.of(self.shapes->output(i, static_cast<int>(axis)));
    }
    outputs[i].dtype = self.outputs[i];
    OrtValue* value = nullptr;
    check(api.KernelContext_GetOutput(context, static_cast<size_t>(i), outputs[i].dims, rank, &value));
    check(api.GetTensorMutableData(value, &outputs[i].data));
  }
  if (self.gpu != nullptr) return launch(me, sizes, inputs, outputs, context);
  const void* pool[2] = {&api, context};
  // ONNX Runtime does not tell the size of its pool; by default it is that of the machine.
  static const size_t threads = std::max(1U, std::thread::hardware_concurrency());
  me.kernel->run(inputs, outputs, Parallel(&run_on_pool, pool, threads));
}

// Whichever of the family takes these element types, `self` where none does; null where several do that give others.
const WrappedOperator* fitting(const WrappedOperator& self, const ONNXTensorElementDataType* types) {
  const WrappedOperator* found = nullptr;
  for (const WrappedOperator& member : self.family->members) {
    bool same = true;
    for (int i = 0; i < self.op().input_count; ++i)
      same = same && types[i] == element_type(member.inputs[i]);
    if (!same) continue;
    for (int i = 0; found != nullptr && i < self.op().output_count; ++i) {
      if (found->outputs[i] != member.outputs[i]) return nullptr;
    }
    found = &member;
  }
  return found == nullptr ? &self : found;
}

// Gives each output the dtype, and the sizes and names that the inputs have for its dimensions, as far as they are
// known.
void infer(const WrappedOperator& self, OrtShapeInferContext* context) {
  const OrtApi& api = *self.api;
  const Operator& op = self.op();
  Sizes sizes(*self.shapes);
  std::vector<std::string> symbols(self.shapes->names().size());
  ONNXTensorElementDataType types[kMaxTensors] = {};
  for (int i = 0; i < op.input_count; ++i) {
    const auto rank = static_cast<size_t>(op.inputs[i].rank);
    OrtTensorTypeAndShapeInfo* shape = nullptr;  // Lent: the context owns it.
    size_t actual = 0;
    check(api.ShapeInferContext_GetInputTypeShape(context, static_cast<size_t>(i), &shape));
    check(api.GetTensorElementType(shape, &types[i]));
    check(api.GetDimensionsCount(shape, &actual));
    if (actual != rank) continue;  // Unknown so far; a wrong rank is found when the node runs.
    int64_t dims[kMaxRank];
    const char* names[kMaxRank] = {};
    check(api.GetDimensions(shape, dims, rank));
    check(api.GetSymbolicDimensions(shape, names, rank));
    sizes.learn(i, dims);
    for (size_t axis = 0; axis < rank; ++axis) {
      const Extent& extent = self.shapes->input(i, static_cast<int>(axis));
      if (extent.terms != 1 || names[axis] == nullptr) continue;
      std::string& symbol = symbols[extent.dims[0]];
      if (symbol.empty()) symbol = names[axis];
    }
  }
  const WrappedOperator* const typed = fitting(self, types);
  if (typed == nullptr) return;  // The graph's own types say which it is.
  for (int i = 0; i < op.output_count; ++i) {
    const auto rank = static_cast<size_t>(op.outputs[i].rank);
    int64_t dims[kMaxRank];
    std::string sums[kMaxRank];
    const char* names[kMaxRank];
    bool known = true;
    for (size_t axis = 0; axis < rank; ++axis) {
      const Extent& extent = self.shapes->output(i, static_cast<int>(axis));
      dims[axis] = sizes.of(extent);
      for (int term = 0; dims[axis] < 0 && term < extent.terms; ++term) {
        const std::string& symbol = symbols[extent.dims[term]];
        known = known && !symbol.empty();
        sums[axis] += (term ? " + " : "") + symbol;
      }
      names[axis] = sums[axis].c_str();
    }
    if (!known) continue;  // A size of -1 without a name would be taken for a size.
    OwnedShape shape(api);
    check(api.CreateTensorTypeAndShapeInfo(shape.out()));
    check(api.SetTensorElementType(shape.get(), element_type(typed->outputs[i])));
    check(api.SetDimensions(shape.get(), dims, rank));
    check(api.SetSymbolicDimensions(shape.get(), names, rank));
    check(api.ShapeInferContext_SetOutputTypeShape(context, static_cast<size_t>(i), shape.get()));
  }
}

// Everything but dtypes and provider.
WrappedOperator wrap(const Family& family, const OrtApi& api) {
  WrappedOperator self;
  self.family = &family;
  self.shapes = &family.shapes;
  self.api = &api;
  OrtCustomOp& ort = self.ort;
  ort.version = kApiVersion;
  ort.GetName = [](const OrtCustomOp* custom) { return wrapped(custom).op().name; };
  ort.GetExecutionProviderType = [](const OrtCustomOp* custom) -> const char* {
    return wrapped(custom).cuda ? "CUDAExecutionProvider" : nullptr;
  };
  ort.GetInputTypeCount = [](const OrtCustomOp* custom) {
    return static_cast<size_t>(wrapped(custom).op().input_count);
  };
  ort.GetOutputTypeCount = [](const OrtCustomOp* custom) {
    return static_cast<size_t>(wrapped(custom).op().output_count);
  };
  ort.GetInputType = [](const OrtCustomOp* custom, size_t index) {
    return element_type(wrapped(custom).inputs[index]);
  };
  ort.GetOutputType = [](const OrtCustomOp* custom, size_t index) {
    return element_type(wrapped(custom).outputs[index]);
  };
  ort.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  ort.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  ort.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  ort.GetStartVersion = [](const OrtCustomOp* custom) { return wrapped(custom).op().version; };
  ort.GetEndVersion = [](const OrtCustomOp* custom) { return wrapped(custom).op().version; };
  ort.CreateKernelV2 = [](const OrtCustomOp* custom, const OrtApi*, const OrtKernelInfo* info,
                          void** kernel) -> OrtStatusPtr {
    const WrappedOperator& me = wrapped(custom);
    auto made = std::make_unique<NodeKernel>();
    made->wrapped = &me;
    const std::string name = node_name(*me.api, info);
    made->where = me.op().name + (name.empty() ? "" : " (" + name + ")");
    OrtStatus* status = guarded(*me.api, made->where, [&] { create(*made, info); });
    if (status == nullptr) *kernel = made.release();
    return status;
  };
  ort.KernelDestroy = [](void* kernel) { delete static_cast<NodeKernel*>(kernel); };
  ort.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatusPtr {
    const NodeKernel& me = *static_cast<NodeKernel*>(kernel);
    return guarded(*me.wrapped->api, me.where, [&] { compute(me, context); });
  };
  ort.InferOutputShapeFn = [](const OrtCustomOp* custom, OrtShapeInferContext* context) -> OrtStatusPtr {
    const WrappedOperator& me = wrapped(custom);
    // ONNX Runtime drops what comes back here: shapes that contradict each other are reported when the node runs.
    OrtStatus* status = guarded(*me.api, me.op().name, [&] { infer(me, context); });
    if (status != nullptr) me.api->ReleaseStatus(status);
    return nullptr;
  };
  return self;
}

// variant: which of the operator's choices of dtypes, counted like the digits of a number, the first input's fastest.
WrappedOperator wrap_for_cpu(const Family& family, int variant, const OrtApi& api) {
  WrappedOperator self = wrap(family, api);
  const Operator& op = self.op();
  for (int i = 0; i < op.input_count; ++i) {
    const DTypes& dtypes = op.inputs[i].dtypes;
    self.inputs[i] = dtypes.of[variant % dtypes.count];
    variant /= dtypes.count;
  }
  for (int i = 0; i < op.output_count; ++i)
    self.outputs[i] = op.outputs[i].dtypes.of[0];
  return self;
}

// The dtypes are those of the compiled kernels' pointers.
WrappedOperator wrap_for_gpu(const Family& family, GpuKernels& gpu, const GpuTypes& types, const OrtApi& api) {
  WrappedOperator self = wrap(family, api);
  self.cuda = true;
  self.gpu = &gpu;
  self.activation = types.activation;
  const Operator& op = self.op();
  for (int i = 0; i < op.input_count; ++i)
    self.inputs[i] = types.of(op.name, op.inputs[i].name);
  for (int i = 0; i < op.output_count; ++i)
    self.outputs[i] = types.of(op.name, op.outputs[i].name);
  return self;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Why a node with the inputs of `cpu` has no kernel for CUDA. built: what there is for its operator.
std::string refusal(const WrappedOperator& cpu, const GpuLibrary& library, const std::vector<GpuTypes>& built) {
  const Operator& op = cpu.op();
  std::string why = "has no kernel for CUDAExecutionProvider: ";
  if (op.cpu_alone) {
    why += "it has kernels for the CPU alone; kernels=\"portable\" runs its function body";
  } else if (library.kernels == nullptr) {
    why += library.reason;
  } else if (ends_with(op.name, "Bf16") || ends_with(op.name, "Int8")) {
    why += "it rounds float32 activations, which the CPU's kernels alone do; export with --precision fp32 for CUDA";
  } else if (built.empty()) {
    why += "no GPU kernels of version " + std::to_string(op.version) + " were built for it; run: vitrify kernels build";
  } else {
    why += "it was built for ";
    for (const GpuTypes& types : built)
      why += types.activation + (&types == &built.back() ? "" : ", ");
    why += " throughout, and here";
    for (int i = 0; i < op.input_count; ++i)
      why += std::string(i ? ", " : " ") + op.inputs[i].name + " is " + dtype_name(cpu.inputs[i]);
    for (int i = 0; i < op.output_count; ++i)
      why += std::string(", ") + op.outputs[i].name + " is " + dtype_name(cpu.outputs[i]);
  }
  return why + "; or open the session on CPUExecutionProvider";
}

// Where ONNX Runtime may run CUDA: what a GPU's kernels take, and all else of the operator as nodes whose session does
// not open. Without these ONNX Runtime would run them on the CPU, and say nothing.
void add_for_gpu(Family& family, const GpuLibrary& library, const OrtApi& api) {
  const Operator& op = family.shapes.op();
  const size_t on_cpu = family.members.size();
  const std::vector<GpuTypes> built =
      library.kernels == nullptr ? std::vector<GpuTypes>() : library.kernels->types(op.name, op.version);
  for (const GpuTypes& types : built)
    family.members.push_back(wrap_for_gpu(family, *library.kernels, types, api));
  for (size_t i = 0; i < on_cpu; ++i) {
    const WrappedOperator& cpu = family.members[i];
    const bool taken = std::any_of(family.members.begin() + static_cast<std::ptrdiff_t>(on_cpu), family.members.end(),
                                   [&](const WrappedOperator& member) {
                                     return std::equal(cpu.inputs, cpu.inputs + op.input_count, member.inputs) &&
                                            std::equal(cpu.outputs, cpu.outputs + op.output_count, member.outputs);
                                   });
    if (taken) continue;
    WrappedOperator refused = cpu;
    refused.cuda = true;
    refused.refusal = refusal(cpu, library, built);
    family.members.push_back(std::move(refused));
  }
}

// One domain for the life of the process, shared by all sessions: they keep pointers into it.
OrtCustomOpDomain* domain(const OrtApi& api) {
  static std::mutex mutex;
  static OrtCustomOpDomain* made = nullptr;
  static std::deque<Family> families;  // It does not move its elements when it grows.
  const std::lock_guard<std::mutex> lock(mutex);
  if (made == nullptr) {
    const GpuLibrary& gpu = gpu_library();
    OrtCustomOpDomain* fresh = nullptr;
    check(api.CreateCustomOpDomain("vitrify", &fresh));
    for (int i = 0; i < kOperatorCount; ++i) {
      const Operator& op = *kOperators[i];
      Family& family = families.emplace_back(op);
      int variants = 1;
      for (int input = 0; input < op.input_count; ++input)
        variants *= op.inputs[input].dtypes.count;
      for (int variant = 0; variant < variants; ++variant)
        family.members.push_back(wrap_for_cpu(family, variant, api));
      if (gpu.driver) add_for_gpu(family, gpu, api);
      for (const WrappedOperator& member : family.members)
        check(api.CustomOpDomain_Add(fresh, &member.ort));
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
  return vitrify::guarded(*api, "vitrify",
                          [&] { vitrify::check(api->AddCustomOpDomain(options, vitrify::domain(*api))); });
}
