// What the library exports: plain C, for ctypes and for tests. ONNX Runtime enters through RegisterCustomOps
// (ort_ops.cpp) alone.
#pragma once

#include <stdint.h>

#define VITRIFY_EXPORT extern "C" __attribute__((visibility("default")))

// One op per line: its name, a space, its version.
VITRIFY_EXPORT const char* vitrify_ops();

// One op per line: name version (input: dtype[dims], …) -> (output: dtype[dims], …)
VITRIFY_EXPORT const char* vitrify_op_signatures();

// The level whose kernels run; the levels compiled in, worst to best (null past the last); whether this machine
// has one; and, for tests, the choice of one. force returns 0, or -1 for a level that is unknown or that this
// machine lacks; null goes back to the best.
VITRIFY_EXPORT const char* vitrify_cpu_level();
VITRIFY_EXPORT const char* vitrify_cpu_level_name(int index);
VITRIFY_EXPORT int vitrify_cpu_level_supported(int index);
VITRIFY_EXPORT int vitrify_force_cpu_level(const char* name);

// r = h1 - h0; sums[row] = {Σ|r - r_ref|, Σ|r_ref|}; see residual_diff/README.md. Runs on the calling thread.
// All arrays are dense: [batch, tokens, width], sums [batch, 2]. r and sums overlap no input.
VITRIFY_EXPORT void vitrify_residual_diff_f32(const float* h1, const float* h0, const float* r_ref, float* r,
                                              float* sums, int64_t batch, int64_t tokens, int64_t width);
