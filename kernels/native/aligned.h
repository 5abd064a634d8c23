// Memory for the maths: at addresses that a cache line divides, so that no vector register's load crosses one.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace vitrify {

constexpr std::align_val_t kCacheLine{64};

struct AlignedDelete {
  void operator()(float* memory) const { ::operator delete(memory, kCacheLine); }
};
using AlignedFloats = std::unique_ptr<float[], AlignedDelete>;

inline AlignedFloats aligned_floats(size_t count) {
  return AlignedFloats(static_cast<float*>(::operator new(count * sizeof(float), kCacheLine)));
}

// Memory that grows to the most that was asked of it.
class Scratch {
 public:
  float* at_least(size_t count) {
    if (count > size_) {
      memory_.reset();
      memory_ = aligned_floats(count);
      size_ = count;
    }
    return memory_.get();
  }

 private:
  AlignedFloats memory_;
  size_t size_ = 0;
};

}  // namespace vitrify
