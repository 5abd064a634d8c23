// A pool as the maths sees it: a function that runs task(state, i) for i in 0 .. count-1, in any order, on any
// thread, and returns when all are done.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>

namespace vitrify {

using Task = void (*)(void* state, size_t index);

class Parallel {
 public:
  using Run = void (*)(const void* pool, size_t count, Task task, void* state);

  // The calling thread alone.
  Parallel() = default;
  // threads: how many may share the tasks, as far as known: for choosing sizes, never for results.
  Parallel(Run run, const void* pool, size_t threads) : run_(run), pool_(pool), threads_(threads) {}

  size_t threads() const { return threads_; }

  // What a body throws reaches the caller when all tasks are done; of several, one.
  template <typename Body>
  void for_each(size_t count, const Body& body) const {
    if (run_ == nullptr || count < 2) {
      for (size_t index = 0; index < count; ++index) {
        body(index);
      }
      return;
    }
    State<Body> state{body, {false}, nullptr};
    const Task task = [](void* opaque, size_t index) {
      State<Body>& shared = *static_cast<State<Body>*>(opaque);
      try {
        shared.body(index);
      } catch (...) {
        if (!shared.failed.exchange(true)) shared.error = std::current_exception();
      }
    };
    run_(pool_, count, task, &state);
    if (state.error) std::rethrow_exception(state.error);
  }

 private:
  template <typename Body>
  struct State {
    const Body& body;
    std::atomic<bool> failed;
    std::exception_ptr error;
  };

  Run run_ = nullptr;
  const void* pool_ = nullptr;
  size_t threads_ = 1;
};

}  // namespace vitrify
