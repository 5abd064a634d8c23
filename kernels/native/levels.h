// Instruction sets that the maths is compiled for. One source file per op, compiled once per level with that
// level's flags (CMakeLists.txt, VITRIFY_LEVELS) in a namespace of the level's name; dispatch picks at run time.
//
// To add a level: one row here, worst to best, one line of flags in CMakeLists.txt.
#pragma once

// Each row: namespace and name, and a test of this machine.
#if defined(__x86_64__)
#define VITRIFY_HAS_AVX512                                                                                          \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && \
   __builtin_cpu_supports("avx512vl"))
#define VITRIFY_FOR_EACH_LEVEL(X, ...)                                                                              \
  X(scalar, true, __VA_ARGS__)                                                                                      \
  X(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), __VA_ARGS__)                             \
  X(avx512, VITRIFY_HAS_AVX512, __VA_ARGS__)                                                                        \
  X(avx512_vnni, VITRIFY_HAS_AVX512&& __builtin_cpu_supports("avx512vnni"), __VA_ARGS__)                            \
  X(avx512_bf16, VITRIFY_HAS_AVX512&& __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"), \
    __VA_ARGS__)                                                                                                    \
  X(amx,                                                                                                            \
    VITRIFY_HAS_AVX512&& __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&            \
        __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&                                 \
        __builtin_cpu_supports("amx-int8") && tiles_allowed(),                                                      \
    __VA_ARGS__)
#else
#define VITRIFY_FOR_EACH_LEVEL(X, ...) X(scalar, true, __VA_ARGS__)
#endif
