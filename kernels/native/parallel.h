// A pool as the maths sees it: a function that runs task(state, i) for i in 0 .. count-1, in any order, on any
// thread, and returns when all are done.
#pragma once

#include <cstddef>

namespace vitrify {

using Task = void (*)(void* state, size_t index);

class Parallel {
 public:
  using Run = void (*)(const void* pool, size_t count, Task task, void* state);

  // The calling thread alone.
  Parallel() = default;
  Parallel(Run run, const void* pool) : run_(run), pool_(pool) {}

  template <typename Body>
  void for_each(size_t count, const Body& body) const {
    if (run_ == nullptr || count < 2) {
      for (size_t index = 0; index < count; ++index) {
        body(index);
      }
      return;
    }
    const Task task = [](void* state, size_t index) { (*static_cast<const Body*>(state))(index); };
    run_(pool_, count, task, const_cast<Body*>(&body));
  }

 private:
  Run run_ = nullptr;
  const void* pool_ = nullptr;
};

}  // namespace vitrify
