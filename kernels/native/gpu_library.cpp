#include "native/gpu_library.h"

#include <dlfcn.h>

#include <fstream>

#include "native/c_interface.h"
#include "native/last_error.h"

namespace vitrify {
namespace {

GpuLibrary open_beside_this_library() {
  GpuLibrary made;
  made.driver = cuda::present();
  Dl_info self = {};
  if (dladdr(reinterpret_cast<const void*>(&vitrify_gpu_status), &self) == 0 || self.dli_fname == nullptr) {
    made.reason = "this library's own folder is unknown";
    return made;
  }
  const std::string file = self.dli_fname;
  const size_t slash = file.rfind('/');
  const std::string folder = (slash == std::string::npos ? "." : file.substr(0, slash)) + "/cubins";
  if (!std::ifstream(folder + "/manifest.json").is_open()) {
    made.reason = "no GPU kernels were built; run: vitrify kernels build";
    return made;
  }
  try {
    cuda::driver();
  } catch (const CudaError& error) {
    made.reason = error.what();
    return made;
  }
  made.kernels = std::make_unique<GpuKernels>(folder);
  return made;
}

}  // namespace

const GpuLibrary& gpu_library() {
  static const GpuLibrary opened = open_beside_this_library();
  return opened;
}

}  // namespace vitrify

const char* vitrify_gpu_status() {
  const bool sound = vitrify::guarded("", [] { vitrify::gpu_library(); });
  return sound ? vitrify::gpu_library().reason.c_str() : vitrify_error();
}
