// Which level's kernels run: the best that this machine has, unless a test forces another.
#pragma once

#include "native/levels.h"

namespace vitrify {

#define VITRIFY_LEVEL_ENUM(level, supported, unused) level,
enum class Level : int { VITRIFY_FOR_EACH_LEVEL(VITRIFY_LEVEL_ENUM, ) count };
#undef VITRIFY_LEVEL_ENUM

constexpr int kLevelCount = static_cast<int>(Level::count);

Level active_level();

// One function of type Function, compiled once per level.
template <typename Function>
struct PerLevel {
  Function* of[kLevelCount];
  Function* active() const { return of[static_cast<int>(active_level())]; }
};

}  // namespace vitrify

// VITRIFY_PER_LEVEL(name, Function) declares vitrify::<level>::name for every level and the table
// vitrify::name_by_level over them. Function is a function type in namespace vitrify.
#define VITRIFY_DECLARE_AT_LEVEL(level, supported, name, Function) \
  namespace level {                                                \
  Function name;                                                   \
  }
#define VITRIFY_ENTRY_AT_LEVEL(level, supported, name, Function) &level::name,
#define VITRIFY_PER_LEVEL(name, Function)                          \
  VITRIFY_FOR_EACH_LEVEL(VITRIFY_DECLARE_AT_LEVEL, name, Function) \
  inline constexpr PerLevel<Function> name##_by_level = {          \
      {VITRIFY_FOR_EACH_LEVEL(VITRIFY_ENTRY_AT_LEVEL, name, Function)}}
