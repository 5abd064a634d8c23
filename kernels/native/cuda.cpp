#include "native/cuda.h"

#include <dlfcn.h>

namespace vitrify::cuda {
namespace {

template <typename Function>
void find(void* library, const char* name, Function& function) {
  void* const symbol = dlsym(library, name);
  if (symbol == nullptr) {
    throw CudaError(std::string("libcuda.so.1 has no ") + name +
                    ": the NVIDIA driver must be 550 (CUDA 12.4) or newer");
  }
  function = reinterpret_cast<Function>(symbol);
}

Driver load() {
  // It stays loaded: contexts and modules live in it until the process ends.
  void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const reason = dlerror();
    throw CudaError(std::string("no NVIDIA driver: ") + (reason == nullptr ? "libcuda.so.1 was not found" : reason) +
                    "; install one, or run on the CPU");
  }
  Driver made = {};
  find(library, "cuInit", made.init);
  find(library, "cuGetErrorName", made.error_name);
  find(library, "cuCtxGetCurrent", made.current_context);
  find(library, "cuCtxGetDevice", made.current_device);
  find(library, "cuDeviceGetAttribute", made.device_attribute);
  find(library, "cuModuleLoadData", made.load_module);
  find(library, "cuModuleGetFunction", made.get_function);
  find(library, "cuFuncSetAttribute", made.set_function_attribute);
  find(library, "cuFuncGetParamInfo", made.parameter_info);
  find(library, "cuMemAllocAsync", made.allocate);
  find(library, "cuMemFreeAsync", made.free);
  find(library, "cuLaunchKernel", made.launch);
  made.check(made.init(0), "cuInit");
  return made;
}

}  // namespace

void Driver::check(Result result, const char* call) const {
  if (result == 0) return;
  const char* name = nullptr;
  if (error_name(result, &name) != 0 || name == nullptr) name = "an unknown error";
  throw CudaError(std::string(call) + " failed: " + name + " (" + std::to_string(result) + ")");
}

bool present() {
  void* const library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return false;
  dlclose(library);
  return true;
}

const Driver& driver() {
  static const Driver loaded = load();
  return loaded;
}

}  // namespace vitrify::cuda
