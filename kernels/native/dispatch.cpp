#include "native/dispatch.h"

#include <atomic>
#include <cstring>

#include "native/c_interface.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vitrify {
namespace {

#if defined(__x86_64__)
// Whether the system lets this process use the tile registers: Linux wants to be asked first.
bool tiles_allowed() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

struct Row {
  const char* name;
  bool supported;
};

const Row* rows() {
#define VITRIFY_LEVEL_ROW(level, supported, unused) {#level, static_cast<bool>(supported)},
  static const Row table[kLevelCount] = {VITRIFY_FOR_EACH_LEVEL(VITRIFY_LEVEL_ROW, )};
#undef VITRIFY_LEVEL_ROW
  return table;
}

int best_level() {
  int best = 0;
  for (int level = 0; level < kLevelCount; ++level) {
    if (rows()[level].supported) best = level;
  }
  return best;
}

std::atomic<int>& current() {
  static std::atomic<int> level{best_level()};
  return level;
}

}  // namespace

Level active_level() {
  return static_cast<Level>(current().load(std::memory_order_relaxed));
}

}  // namespace vitrify

const char* vitrify_cpu_level() {
  return vitrify::rows()[static_cast<int>(vitrify::active_level())].name;
}

const char* vitrify_cpu_level_name(int index) {
  return index >= 0 && index < vitrify::kLevelCount ? vitrify::rows()[index].name : nullptr;
}

int vitrify_cpu_level_supported(int index) {
  return index >= 0 && index < vitrify::kLevelCount && vitrify::rows()[index].supported ? 1 : 0;
}

int vitrify_force_cpu_level(const char* name) {
  if (name == nullptr) {
    vitrify::current().store(vitrify::best_level());
    return 0;
  }
  for (int level = 0; level < vitrify::kLevelCount; ++level) {
    if (std::strcmp(vitrify::rows()[level].name, name) == 0 && vitrify::rows()[level].supported) {
      vitrify::current().store(level);
      return 0;
    }
  }
  return -1;
}
