// Runs an op's program on a GPU: evaluates the manifest's expressions for one call, loads the images that it needs,
// packs their parameters and launches them on the caller's stream.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "native/cuda.h"
#include "native/gpu_manifest.h"
#include "native/operator.h"

namespace vitrify {

// One call of an op. Dimensions and int attributes share the names of `numbers`.
struct GpuCall {
  std::string op;
  int64_t version = 1;
  std::string activation;  // float32, float16 or bfloat16.
  Numbers numbers;
  std::map<std::string, double> reals;         // Float attributes, as float32 holds them.
  std::map<std::string, const void*> tensors;  // Inputs, outputs and scratch, in GPU memory.
};

// The dtypes that an op's tensors have on a GPU, with activations of one dtype.
struct GpuTypes {
  std::string activation;
  std::map<std::string, std::string> tensors;  // Inputs, outputs and scratch.

  // Throws ManifestError for a tensor that no kernel takes.
  DType of(const std::string& op, const std::string& tensor) const;
};

// What a call wants that these kernels do not have: a caller may compute it in another way.
class NoKernel : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The kernels of one folder. Several threads may use one.
class GpuKernels {
 public:
  // Throws ManifestError.
  explicit GpuKernels(std::string folder);

  // The buffers that a call needs between its launches, with their sizes in bytes. Throws NoKernel, ManifestError.
  std::vector<std::pair<const char*, size_t>> scratch(const GpuCall& call) const;

  // One for each dtype of activations that an op has kernels for; none for an op that has no program of this version.
  std::vector<GpuTypes> types(const std::string& op, int64_t version) const;

  // Launches in the calling thread's current CUDA context; returns before the GPU is done. Nothing is launched unless
  // every launch of the call can be. Throws NoKernel, ManifestError, CudaError.
  void run(const GpuCall& call, cuda::Stream* stream);

  // The same with scratch memory of its own, from the driver's pool, in the stream's order.
  void run_with_scratch(GpuCall call, cuda::Stream* stream);

 private:
  struct Loaded {
    cuda::Function* function;
    const GpuImage* image;
  };
  struct Prepared {
    Loaded loaded;
    std::vector<unsigned char> parameters;
    unsigned grid[3];

    // Of an empty tensor.
    bool empty() const { return grid[0] == 0 || grid[1] == 0 || grid[2] == 0; }
  };

  const GpuProgram& program(const GpuCall& call) const;
  Prepared prepare(const GpuCall& call, const GpuLaunch& launch);
  Loaded load(const GpuKernel& kernel, const GpuVariant& variant);

  std::string folder_;
  GpuManifest manifest_;
  std::mutex mutex_;
  std::map<std::pair<cuda::Context*, const GpuVariant*>, Loaded> loaded_;
};

}  // namespace vitrify
