#include "native/cubin.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "native/c_interface.h"
#include "native/last_error.h"

namespace vitrify {
namespace {

int64_t evaluated(const std::string& where, const std::string& expression, const Numbers& numbers) {
  try {
    return evaluate(expression, numbers);
  } catch (const ExpressionError& error) {
    throw ManifestError(where + ": " + error.what());
  }
}

size_t element_bytes(const std::string& where, const std::string& dtype) {
  if (dtype == "float32") return 4;
  if (dtype == "float16" || dtype == "bfloat16") return 2;
  throw ManifestError(where + ": dtype '" + dtype + "' is unknown");
}

// The value by which a variant is picked: a float attribute, or an expression.
double picked(const std::string& where, const std::string& text, const GpuCall& call) {
  const auto real = call.reals.find(text);
  return real != call.reals.end() ? real->second : static_cast<double>(evaluated(where, text, call.numbers));
}

const GpuVariant& pick(const std::string& where, const GpuLaunch& launch, const GpuCall& call) {
  std::map<std::string, double> wanted;
  std::string said;
  for (const auto& [name, text] : launch.constants) {
    wanted[name] = picked(where, text, call);
    said += " " + name + "=" + std::to_string(wanted[name]);
  }
  for (const GpuVariant& variant : launch.kernel->variants) {
    if (launch.kernel->follows_activations() && variant.dtype != call.activation) continue;
    bool same = true;
    for (const auto& [name, value] : wanted) {
      const auto found = variant.constants.find(name);
      same = same && found != variant.constants.end() && found->second == value;
    }
    if (same) return variant;
  }
  throw NoKernel(where + ": no variant of " + launch.kernel->name + " was built for " + call.activation + said);
}

// The image for a GPU of this compute capability: its own; on 8.x one of a lower 8.y, which runs there; or the PTX,
// which the driver compiles for any later GPU. Images for 9.0 and later use instructions of that GPU alone.
const GpuImage* fitting(const GpuVariant& variant, int major, int minor) {
  for (int lower = minor; lower >= (major == 8 ? 0 : minor); --lower) {
    const auto found = variant.images.find("sm_" + std::to_string(major * 10 + lower));
    if (found != variant.images.end()) return &found->second;
  }
  const auto found = variant.images.find("sm_80_ptx");
  return found != variant.images.end() && major >= 8 ? &found->second : nullptr;
}

}  // namespace

GpuKernels::GpuKernels(std::string folder) : folder_(std::move(folder)), manifest_(GpuManifest::read(folder_)) {}

const GpuProgram& GpuKernels::program(const GpuCall& call) const {
  const auto found = manifest_.programs.find(call.op);
  if (found == manifest_.programs.end()) throw NoKernel(call.op + ": no GPU kernels were built for it");
  if (found->second.version != call.version) {
    throw NoKernel(call.op + ": the GPU kernels are of version " + std::to_string(found->second.version) +
                   ", expected " + std::to_string(call.version));
  }
  for (const GpuCondition& condition : found->second.conditions) {
    const int64_t value = evaluated(call.op, condition.value, call.numbers);
    const int64_t other = evaluated(call.op, condition.other, call.numbers);
    if (condition.equal ? value == other : value <= other) continue;
    throw NoKernel(call.op + ": " + condition.value + " is " + std::to_string(value) + ", expected " +
                   (condition.equal ? "" : "at most ") + std::to_string(other) + " (" + condition.other + ")");
  }
  return found->second;
}

std::vector<std::pair<const char*, size_t>> GpuKernels::scratch(const GpuCall& call) const {
  std::vector<std::pair<const char*, size_t>> bytes;
  for (const GpuScratch& buffer : program(call).scratch) {
    const std::string where = call.op + ", scratch " + buffer.name;
    const int64_t elements = evaluated(where, buffer.elements, call.numbers);
    const std::string& dtype = buffer.dtype == "activation" ? call.activation : buffer.dtype;
    int64_t size = 0;
    if (elements < 0 || __builtin_mul_overflow(elements, element_bytes(where, dtype), &size)) {
      throw ManifestError(where + ": a size of " + std::to_string(elements) + " elements");
    }
    bytes.emplace_back(buffer.name.c_str(), static_cast<size_t>(size));
  }
  return bytes;
}

DType GpuTypes::of(const std::string& op, const std::string& tensor) const {
  const auto found = tensors.find(tensor);
  if (found == tensors.end()) throw ManifestError(op + ": no kernel takes " + tensor + "; run: vitrify kernels build");
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    if (found->second == dtype_name(dtype)) return dtype;
  }
  throw ManifestError(op + ": " + tensor + " is of dtype '" + found->second +
                      "', expected float32, float16 or bfloat16");
}

std::vector<GpuTypes> GpuKernels::types(const std::string& op, int64_t version) const {
  std::vector<GpuTypes> found;
  const auto program = manifest_.programs.find(op);
  if (program == manifest_.programs.end() || program->second.version != version) return found;
  for (const char* activation : {"float16", "bfloat16", "float32"}) {
    GpuTypes types = {activation, {}};
    bool whole = true;
    for (const GpuLaunch& launch : program->second.launches) {
      const std::vector<GpuVariant>& variants = launch.kernel->variants;
      whole = whole && (!launch.kernel->follows_activations() ||
                        std::any_of(variants.begin(), variants.end(),
                                    [&](const GpuVariant& variant) { return variant.dtype == activation; }));
      for (const GpuArgument& argument : launch.kernel->arguments) {
        if (!argument.pointer) continue;
        types.tensors[launch.given(argument.name)] = argument.dtype == "activation" ? activation : argument.dtype;
      }
    }
    if (whole) found.push_back(std::move(types));
  }
  return found;
}

void GpuKernels::run_with_scratch(GpuCall call, cuda::Stream* stream) {
  const cuda::Driver& driver = cuda::driver();
  struct Held {
    const cuda::Driver& driver;
    cuda::Stream* stream;
    std::vector<uintptr_t> addresses;
    ~Held() {
      for (const uintptr_t address : addresses)
        driver.free(address, stream);
    }
  } held = {driver, stream, {}};
  for (const auto& [name, bytes] : scratch(call)) {
    uintptr_t address = 0;
    if (bytes != 0) {
      driver.check(driver.allocate(&address, bytes, stream), "cuMemAllocAsync");
      held.addresses.push_back(address);
    }
    call.tensors[name] = reinterpret_cast<const void*>(address);
  }
  run(call, stream);
}

void GpuKernels::run(const GpuCall& call, cuda::Stream* stream) {
  std::vector<Prepared> prepared;
  for (const GpuLaunch& launch : program(call).launches)
    prepared.push_back(prepare(call, launch));
  const cuda::Driver& driver = cuda::driver();
  for (Prepared& one : prepared) {
    if (one.empty()) continue;
    size_t size = one.parameters.size();
    void* extra[] = {cuda::kParameterBuffer, one.parameters.data(), cuda::kParameterBytes, &size, cuda::kParametersEnd};
    const GpuImage& image = *one.loaded.image;
    driver.check(driver.launch(one.loaded.function, one.grid[0], one.grid[1], one.grid[2], image.num_warps * 32, 1, 1,
                               image.shared_bytes, stream, nullptr, extra),
                 "cuLaunchKernel");
  }
}

GpuKernels::Prepared GpuKernels::prepare(const GpuCall& call, const GpuLaunch& launch) {
  const GpuKernel& kernel = *launch.kernel;
  const std::string where = call.op + ", kernel " + kernel.name;
  const GpuVariant& variant = pick(where, launch, call);
  Prepared made;
  made.loaded = load(kernel, variant);
  const GpuImage& image = *made.loaded.image;
  made.parameters.assign(image.parameters.back().offset + image.parameters.back().size, 0);
  Numbers known = image.tile;
  for (const auto& [name, value] : variant.constants) {
    if (value == static_cast<double>(static_cast<int64_t>(value))) known[name] = static_cast<int64_t>(value);
  }
  for (size_t i = 0; i < kernel.arguments.size(); ++i) {
    const GpuArgument& argument = kernel.arguments[i];
    unsigned char* const to = made.parameters.data() + image.parameters[i].offset;
    if (argument.pointer) {
      const auto tensor = call.tensors.find(launch.given(argument.name));
      if (tensor == call.tensors.end()) {
        throw ManifestError(where + ": " + argument.name + " is given '" + launch.given(argument.name) +
                            "', no tensor of the op");
      }
      const auto address = reinterpret_cast<uintptr_t>(tensor->second);
      if (address % static_cast<uintptr_t>(argument.divisible_by) != 0) {
        throw NoKernel(where + ": " + tensor->first + " is not aligned to " + std::to_string(argument.divisible_by) +
                       " bytes");
      }
      std::memcpy(to, &address, 8);
      continue;
    }
    const int64_t value = evaluated(where, launch.given(argument.name), call.numbers);
    if (value % argument.divisible_by != 0) {
      throw NoKernel(where + ": " + argument.name + " is " + std::to_string(value) +
                     ", its kernel takes multiples of " + std::to_string(argument.divisible_by));
    }
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max()) {
      throw NoKernel(where + ": " + argument.name + " is " + std::to_string(value) + ", beyond int32");
    }
    const auto narrow = static_cast<int32_t>(value);
    std::memcpy(to, &narrow, 4);
    known[argument.name] = value;
  }
  for (const std::string& name : kernel.sizes)
    known[name] = evaluated(where, launch.given(name), call.numbers);
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t blocks = axis < kernel.grid.size() ? evaluated(where, kernel.grid[axis], known) : 1;
    if (blocks < 0 || blocks > (axis == 0 ? std::numeric_limits<int32_t>::max() : 65535)) {
      throw NoKernel(where + ": a grid of " + std::to_string(blocks) + " blocks along axis " + std::to_string(axis));
    }
    made.grid[axis] = static_cast<unsigned>(blocks);
  }
  for (const GpuArgument& argument : kernel.arguments) {
    if (argument.pointer || made.empty() || known[argument.name] >= argument.least) continue;
    throw NoKernel(where + ": " + argument.name + " is " + std::to_string(known[argument.name]) +
                   ", its kernel takes " + std::to_string(argument.least) + " or more");
  }
  return made;
}

GpuKernels::Loaded GpuKernels::load(const GpuKernel& kernel, const GpuVariant& variant) {
  const cuda::Driver& driver = cuda::driver();
  cuda::Context* context = nullptr;
  driver.check(driver.current_context(&context), "cuCtxGetCurrent");
  if (context == nullptr) throw CudaError("the calling thread has no CUDA context");
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = loaded_.find({context, &variant});
  if (found != loaded_.end()) return found->second;

  cuda::Device device = 0;
  driver.check(driver.current_device(&device), "cuCtxGetDevice");
  int major = 0;
  int minor = 0;
  int shared_limit = 0;
  driver.check(driver.device_attribute(&major, cuda::kCapabilityMajor, device), "cuDeviceGetAttribute");
  driver.check(driver.device_attribute(&minor, cuda::kCapabilityMinor, device), "cuDeviceGetAttribute");
  driver.check(driver.device_attribute(&shared_limit, cuda::kMaxSharedBytesOptin, device), "cuDeviceGetAttribute");
  const GpuImage* const image = fitting(variant, major, minor);
  if (image == nullptr) {
    throw NoKernel(variant.name + ": not built for a GPU of compute capability " + std::to_string(major) + "." +
                   std::to_string(minor));
  }
  if (image->shared_bytes > static_cast<unsigned>(shared_limit)) {
    throw NoKernel(variant.name + ": needs " + std::to_string(image->shared_bytes) +
                   " bytes of shared memory, this GPU gives a block " + std::to_string(shared_limit));
  }
  const std::string data = read_file(folder_ + "/" + image->file);  // c_str() ends in 0, as PTX must.
  if (data.size() != image->bytes) {
    throw ManifestError(image->file + " has " + std::to_string(data.size()) + " bytes, the manifest says " +
                        std::to_string(image->bytes) + "; run: vitrify kernels build");
  }
  Loaded loaded = {nullptr, image};
  cuda::Module* module = nullptr;  // Unloaded with its context.
  driver.check(driver.load_module(&module, data.c_str()), "cuModuleLoadData");
  driver.check(driver.get_function(&loaded.function, module, image->entry.c_str()), "cuModuleGetFunction");
  // The driver knows what the image takes: nothing is launched whose parameters the manifest has wrong.
  for (size_t i = 0; i <= image->parameters.size(); ++i) {
    size_t offset = 0;
    size_t size = 0;
    const cuda::Result result = driver.parameter_info(loaded.function, i, &offset, &size);
    const bool past = i == image->parameters.size();
    if (past ? result == cuda::kInvalidValue
             : result == 0 && offset == image->parameters[i].offset && size == image->parameters[i].size) {
      continue;
    }
    throw ManifestError("kernel " + kernel.name + ": " + image->file + " takes " +
                        (past ? "more parameters than the manifest says"
                              : "another parameter " + std::to_string(i) + " than the manifest says") +
                        "; run: vitrify kernels build");
  }
  driver.check(driver.set_function_attribute(loaded.function, cuda::kMaxDynamicSharedBytes,
                                             static_cast<int>(image->shared_bytes)),
               "cuFuncSetAttribute");
  loaded_.emplace(std::make_pair(context, &variant), loaded);
  return loaded;
}

}  // namespace vitrify

using namespace vitrify;

namespace {

GpuCall read_call(const VitrifyGpuCall& given) {
  GpuCall call;
  call.op = given.op;
  call.version = given.version;
  call.activation = given.activation;
  for (int i = 0; i < given.number_count; ++i)
    call.numbers[given.number_names[i]] = given.numbers[i];
  for (int i = 0; i < given.real_count; ++i)
    call.reals[given.real_names[i]] = given.reals[i];
  for (int i = 0; i < given.tensor_count; ++i)
    call.tensors[given.tensor_names[i]] = given.tensors[i];
  return call;
}

}  // namespace

void* vitrify_gpu_open(const char* folder) {
  void* made = nullptr;
  guarded("", [&] { made = new GpuKernels(folder); });
  return made;
}

int vitrify_gpu_scratch(const void* kernels, const VitrifyGpuCall* call, int index, const char** name, int64_t* bytes) {
  int result = -1;
  guarded("", [&] {
    const auto buffers = static_cast<const GpuKernels*>(kernels)->scratch(read_call(*call));
    result = index >= 0 && static_cast<size_t>(index) < buffers.size() ? 1 : 0;
    if (result == 0) return;
    *name = buffers[static_cast<size_t>(index)].first;
    *bytes = static_cast<int64_t>(buffers[static_cast<size_t>(index)].second);
  });
  return result;
}

int vitrify_gpu_run(void* kernels, const VitrifyGpuCall* call, void* stream) {
  const bool done = guarded(
      "", [&] { static_cast<GpuKernels*>(kernels)->run(read_call(*call), static_cast<cuda::Stream*>(stream)); });
  return done ? 0 : -1;
}

void vitrify_gpu_close(void* kernels) {
  delete static_cast<GpuKernels*>(kernels);
}
