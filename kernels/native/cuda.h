// The few functions of NVIDIA's driver that launching needs, found in libcuda.so.1 at run time: nothing of CUDA is
// needed to build. Declared after the CUDA Driver API reference, https://docs.nvidia.com/cuda/cuda-driver-api.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace vitrify {

// What the driver, or its absence, has to say.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace cuda {

using Result = int;
using Device = int;
struct Context;
struct Module;
struct Function;
struct Stream;

constexpr int kCapabilityMajor = 75;       // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kCapabilityMinor = 76;       // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
constexpr int kMaxSharedBytesOptin = 97;   // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
constexpr int kMaxDynamicSharedBytes = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr Result kInvalidValue = 1;        // CUDA_ERROR_INVALID_VALUE

inline void* const kParametersEnd = nullptr;                               // CU_LAUNCH_PARAM_END
inline void* const kParameterBuffer = reinterpret_cast<void*>(size_t{1});  // CU_LAUNCH_PARAM_BUFFER_POINTER
inline void* const kParameterBytes = reinterpret_cast<void*>(size_t{2});   // CU_LAUNCH_PARAM_BUFFER_SIZE

struct Driver {
  Result (*init)(unsigned flags);
  Result (*error_name)(Result error, const char** name);
  Result (*current_context)(Context** context);
  Result (*current_device)(Device* device);
  Result (*device_attribute)(int* value, int attribute, Device device);
  Result (*load_module)(Module** module, const void* image);
  Result (*get_function)(Function** function, Module* module, const char* name);
  Result (*set_function_attribute)(Function* function, int attribute, int value);
  Result (*parameter_info)(Function* function, size_t index, size_t* offset, size_t* size);
  Result (*allocate)(uintptr_t* address, size_t bytes, Stream* stream);  // In the stream's order, as is free.
  Result (*free)(uintptr_t address, Stream* stream);
  Result (*launch)(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream* stream, void** parameters,
                   void** extra);

  // Throws CudaError, naming the call and the error, unless `result` is success.
  void check(Result result, const char* call) const;
};

// Whether there is a libcuda.so.1. It is not initialised.
bool present();

// Loaded and initialised once. Throws CudaError where there is no driver, or one that lacks a function, each time.
const Driver& driver();

}  // namespace cuda
}  // namespace vitrify
