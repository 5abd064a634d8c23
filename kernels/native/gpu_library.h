// The GPU kernels of this installation: the folder `cubins` beside this library, opened once where there is a driver.
#pragma once

#include <memory>
#include <string>

#include "native/cubin.h"

namespace vitrify {

// kernels: null without a driver or a build; then `reason` says which. driver: there is a libcuda.so.1, so that
// ONNX Runtime may run nodes for CUDA. Throws ManifestError, each time, where there is a driver and the build is
// damaged.
struct GpuLibrary {
  std::unique_ptr<GpuKernels> kernels;
  std::string reason;
  bool driver = false;
};

const GpuLibrary& gpu_library();

}  // namespace vitrify
