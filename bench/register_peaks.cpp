// What the processor's units reach on operands that never leave their registers: the limit that no kernel passes.
// One function a unit; each gives back operations (a multiplication and an addition are two) and runs for `seconds`.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kRepeats = 4096;  // of the inner loop between two looks at the clock: some 10 µs

using Clock = std::chrono::steady_clock;
std::atomic<float> sink;  // results go somewhere, or the compiler leaves the work out

#if defined(__x86_64__)

// Sums that start alike stay alike: without this the compiler would keep one of them.
#define KEEP_APART(sum) asm volatile("" : "+v"(sum))

constexpr int kAccumulators = 12;  // more than latency × units of any of these, fewer than registers

__attribute__((target("avx2,fma"))) double fma_avx2() {
  __m256 sum[kAccumulators] = {}, x = _mm256_set1_ps(1e-3f), y = _mm256_set1_ps(1e-3f);
  for (auto& one : sum)
    KEEP_APART(one);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 12
    for (auto& one : sum)
      one = _mm256_fmadd_ps(x, y, one);
  }
  float total = 0;
  for (auto& one : sum)
    total += _mm256_cvtss_f32(one);
  sink = total;
  return 16.0 * kAccumulators * kRepeats;
}

__attribute__((target("avx512f"))) double fma_avx512() {
  __m512 sum[kAccumulators] = {}, x = _mm512_set1_ps(1e-3f), y = _mm512_set1_ps(1e-3f);
  for (auto& one : sum)
    KEEP_APART(one);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 12
    for (auto& one : sum)
      one = _mm512_fmadd_ps(x, y, one);
  }
  float total = 0;
  for (auto& one : sum)
    total += _mm512_cvtss_f32(one);
  sink = total;
  return 32.0 * kAccumulators * kRepeats;
}

__attribute__((target("avx512f,avx512bf16"))) double dot_bf16() {
  __m512 sum[kAccumulators] = {};
  const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-3f), _mm512_set1_ps(1e-3f));
  for (auto& one : sum)
    KEEP_APART(one);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 12
    for (auto& one : sum)
      one = _mm512_dpbf16_ps(one, x, x);
  }
  float total = 0;
  for (auto& one : sum)
    total += _mm512_cvtss_f32(one);
  sink = total;
  return 64.0 * kAccumulators * kRepeats;
}

__attribute__((target("avx512f,avx512vnni"))) double dot_int8() {
  __m512i sum[kAccumulators] = {}, x = _mm512_set1_epi8(1);
  for (auto& one : sum)
    KEEP_APART(one);
  for (int i = 0; i < kRepeats; ++i) {
#pragma GCC unroll 12
    for (auto& one : sum)
      one = _mm512_dpbusd_epi32(one, x, x);
  }
  int total = 0;
  for (auto& one : sum)
    total += _mm512_cvtsi512_si32(one);
  sink = static_cast<float>(total);
  return 128.0 * kAccumulators * kRepeats;
}

// Intel's tile unit: 16 rows of 64 bytes a tile; Linux lets a process use it after asking.
bool tiles_allowed() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

struct alignas(64) TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile"))) void clear_tiles() {
  const TileShape shape;
  asm volatile("" : : "r"(&shape) : "memory");  // the intrinsic does not say that it reads all 64 bytes
  _tile_loadconfig(&shape);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

__attribute__((target("amx-tile,amx-bf16"))) double tile_bf16() {
  clear_tiles();
  for (int i = 0; i < kRepeats; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * (2 * 16 * 16 * 32) * kRepeats;
}

__attribute__((target("amx-tile,amx-int8"))) double tile_int8() {
  clear_tiles();
  for (int i = 0; i < kRepeats; ++i) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return 4.0 * (2 * 16 * 16 * 64) * kRepeats;
}

double (*unit(const char* name))() {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_avx2;
  if (is("avx512f") && __builtin_cpu_supports("avx512f")) return fma_avx512;
  if (is("avx512_bf16") && __builtin_cpu_supports("avx512bf16")) return dot_bf16;
  if (is("avx512_vnni") && __builtin_cpu_supports("avx512vnni")) return dot_int8;
  if (is("amx_bf16") && __builtin_cpu_supports("amx-bf16") && tiles_allowed()) return tile_bf16;
  if (is("amx_int8") && __builtin_cpu_supports("amx-int8") && tiles_allowed()) return tile_int8;
  return nullptr;
}

#else

double (*unit(const char*))() {
  return nullptr;
}

#endif

}  // namespace

// Operations per second of all threads together; 0 where this processor has no such unit, or none that is known here.
extern "C" double vitrify_register_peak(const char* name, int threads, double seconds) {
  const auto run = unit(name);
  if (run == nullptr) return 0;
  std::vector<double> speeds(threads);
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&, i] {
      run();  // wakes the unit up
      double operations = 0, passed = 0;
      const auto start = Clock::now();
      while (passed < seconds) {
        operations += run();
        passed = std::chrono::duration<double>(Clock::now() - start).count();
      }
      speeds[i] = operations / passed;
    });
  }
  double total = 0;
  for (int i = 0; i < threads; ++i) {
    pool[i].join();
    total += speeds[i];
  }
  return total;
}
