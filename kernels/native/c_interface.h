// What the library exports: plain C, for ctypes and for tests. ONNX Runtime enters through RegisterCustomOps
// (ort_ops.cpp) alone.
#pragma once

#include <stdint.h>

#define VITRIFY_EXPORT extern "C" __attribute__((visibility("default")))

// One op per line: its name, a space, its version.
VITRIFY_EXPORT const char* vitrify_ops();

// The version of this interface: raised when a function here changes or goes.
VITRIFY_EXPORT int vitrify_abi_version();

// One op per line: name version {attribute: kind = default, …} (input: dtype|dtype[dims], …) -> (output: dtype[dims],
// …)
VITRIFY_EXPORT const char* vitrify_op_signatures();

// The level whose kernels run; the levels compiled in, worst to best (null past the last); whether this machine
// has one; and, for tests, the choice of one. force returns 0, or -1 for a level that is unknown or that this
// machine lacks; null goes back to the best.
VITRIFY_EXPORT const char* vitrify_cpu_level();
VITRIFY_EXPORT const char* vitrify_cpu_level_name(int index);
VITRIFY_EXPORT int vitrify_cpu_level_supported(int index);
VITRIFY_EXPORT int vitrify_force_cpu_level(const char* name);

// Any op without a framework. A kernel is made once, run any number of times, and destroyed.
struct VitrifyTensor {
  void* data;
  const int64_t* dims;
  int rank;
  const char* dtype;
};

// attribute_values are in the order of attribute_names; those not named take their defaults. `constants` has an entry
// for each input; data is null for those that change from run to run. Constant data must outlive the kernel.
// Null on failure.
VITRIFY_EXPORT void* vitrify_create_kernel(const char* op, int attribute_count, const char* const* attribute_names,
                                           const double* attribute_values, const VitrifyTensor* constants);
// All inputs and outputs of the op, dense; no output overlaps another tensor. 0, or -1 on failure.
VITRIFY_EXPORT int vitrify_run_kernel(const void* kernel, const VitrifyTensor* inputs, const VitrifyTensor* outputs,
                                      int threads);
VITRIFY_EXPORT void vitrify_destroy_kernel(void* kernel);
// Why the calling thread's last failure was one.
VITRIFY_EXPORT const char* vitrify_error();

// r = h1 - h0; sums[row] = {Σ|r - r_ref|, Σ|r_ref|}; see residual_diff/README.md. Runs on the calling thread.
// All arrays are dense: [batch, tokens, width], sums [batch, 2]. r and sums overlap no input.
VITRIFY_EXPORT void vitrify_residual_diff_f32(const float* h1, const float* h0, const float* r_ref, float* r,
                                              float* sums, int64_t batch, int64_t tokens, int64_t width);

// The GPU kernels of a folder that `vitrify kernels build` wrote, launched on the caller's stream in the calling
// thread's current CUDA context. A call names its op, the dtype of its activations, its dimensions and int attributes
// (numbers), its float attributes (reals), and its tensors: inputs, outputs and scratch, addresses in GPU memory.
struct VitrifyGpuCall {
  const char* op;
  int64_t version;
  const char* activation;
  int number_count;
  const char* const* number_names;
  const int64_t* numbers;
  int real_count;
  const char* const* real_names;
  const double* reals;
  int tensor_count;
  const char* const* tensor_names;
  const void* const* tensors;
};

// Null on failure.
VITRIFY_EXPORT void* vitrify_gpu_open(const char* folder);
// The index-th scratch buffer that a call needs: 1, or 0 past the last, or -1 on failure. The name lives as long as the
// kernels.
VITRIFY_EXPORT int vitrify_gpu_scratch(const void* kernels, const VitrifyGpuCall* call, int index, const char** name,
                                       int64_t* bytes);
// 0, or -1 on failure: then nothing was launched, unless a launch itself failed.
VITRIFY_EXPORT int vitrify_gpu_run(void* kernels, const VitrifyGpuCall* call, void* stream);
VITRIFY_EXPORT void vitrify_gpu_close(void* kernels);
// Why the ops do not run on a GPU through ONNX Runtime: no driver, no build, a damaged one. Empty where they do.
VITRIFY_EXPORT const char* vitrify_gpu_status();
