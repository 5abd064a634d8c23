// The operators without a framework: the same checks as in ONNX Runtime, threads of the call's own.
#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "native/c_interface.h"
#include "native/last_error.h"
#include "native/operator.h"
#include "native/shapes.h"

namespace vitrify {
namespace {

struct DirectKernel {
  explicit DirectKernel(const Operator& op) : shapes(op) {}
  Shapes shapes;
  std::unique_ptr<Kernel> kernel;
};

const Operator& find(const char* name) {
  for (int i = 0; i < kOperatorCount; ++i) {
    if (std::strcmp(kOperators[i]->name, name) == 0) return *kOperators[i];
  }
  throw OpError("this library has no such op");
}

Tensor read_tensor(const TensorContract& contract, const VitrifyTensor& given) {
  Tensor tensor;
  tensor.data = given.data;
  bool found = false;
  for (int i = 0; i < contract.dtypes.count && !found; ++i) {
    tensor.dtype = contract.dtypes.of[i];
    found = std::strcmp(dtype_name(tensor.dtype), given.dtype) == 0;
  }
  if (!found) throw OpError(std::string(contract.name) + " has dtype " + given.dtype + ", which it may not have");
  if (given.rank != contract.rank) {
    throw OpError(std::string(contract.name) + " has rank " + std::to_string(given.rank) + ", expected " +
                  std::to_string(contract.rank));
  }
  for (int axis = 0; axis < given.rank; ++axis)
    tensor.dims[axis] = given.dims[axis];
  return tensor;
}

void read_attributes(const Operator& op, int count, const char* const* names, const double* values, Node& node) {
  bool given[kMaxAttributes] = {};
  for (int i = 0; i < op.attribute_count; ++i)
    node.attributes[i] = op.attributes[i].otherwise;
  for (int k = 0; k < count; ++k) {
    int at = 0;
    while (at < op.attribute_count && std::strcmp(op.attributes[at].name, names[k]) != 0)
      ++at;
    if (at == op.attribute_count) throw OpError(std::string("attribute ") + names[k] + " is unknown");
    node.attributes[at] = values[k];
    given[at] = true;
  }
  for (int i = 0; i < op.attribute_count; ++i) {
    if (op.attributes[i].required && !given[i]) {
      throw OpError(std::string("attribute ") + op.attributes[i].name + " is missing");
    }
  }
  check_attributes(op, node.attributes);
}

// The tasks one by one off a shared counter, on threads that live for this call.
void run_on_threads(const void* context, size_t count, Task task, void* state) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t index = next++; index < count; index = next++)
      task(state, index);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < *static_cast<const int*>(context); ++i)
    others.emplace_back(work);
  work();
  for (std::thread& other : others)
    other.join();
}

}  // namespace

std::string& last_error() {
  thread_local std::string text;
  return text;
}

}  // namespace vitrify

using namespace vitrify;

void* vitrify_create_kernel(const char* name, int attribute_count, const char* const* attribute_names,
                            const double* attribute_values, const VitrifyTensor* constants) {
  std::unique_ptr<DirectKernel> made;
  const bool done = guarded(name, [&] {
    const Operator& op = find(name);
    made = std::make_unique<DirectKernel>(op);
    Node node;
    node.op = &op;
    read_attributes(op, attribute_count, attribute_names, attribute_values, node);
    Tensor tensors[kMaxTensors];
    Sizes sizes(made->shapes);
    for (int i = 0; i < op.input_count; ++i) {
      if (constants[i].data == nullptr) continue;
      tensors[i] = read_tensor(op.inputs[i], constants[i]);
      sizes.learn(i, tensors[i].dims);
      node.constants[i] = &tensors[i];
    }
    made->kernel = op.create(node);
  });
  return done ? made.release() : nullptr;
}

int vitrify_run_kernel(const void* kernel, const VitrifyTensor* inputs, const VitrifyTensor* outputs, int threads) {
  const DirectKernel& me = *static_cast<const DirectKernel*>(kernel);
  const Operator& op = me.shapes.op();
  const bool done = guarded(op.name, [&] {
    Tensor in[kMaxTensors];
    Tensor out[kMaxTensors];
    Sizes sizes(me.shapes);
    for (int i = 0; i < op.input_count; ++i) {
      in[i] = read_tensor(op.inputs[i], inputs[i]);
      sizes.learn(i, in[i].dims);
    }
    sizes.check_sums(in);
    for (int i = 0; i < op.output_count; ++i) {
      out[i] = read_tensor(op.outputs[i], outputs[i]);
      for (int axis = 0; axis < op.outputs[i].rank; ++axis) {
        const int64_t expected = sizes.of(me.shapes.output(i, axis));
        if (out[i].dims[axis] == expected) continue;
        throw OpError(std::string(op.outputs[i].name) + " has " + std::to_string(out[i].dims[axis]) + " along " +
                      op.outputs[i].dims[axis] + ", expected " + std::to_string(expected));
      }
    }
    me.kernel->run(in, out,
                   threads > 1 ? Parallel(&run_on_threads, &threads, static_cast<size_t>(threads)) : Parallel());
  });
  return done ? 0 : -1;
}

void vitrify_destroy_kernel(void* kernel) {
  delete static_cast<DirectKernel*>(kernel);
}

const char* vitrify_error() {
  return last_error().c_str();
}
