// The sizes that an operator's named dimensions have: learned from its inputs, checked against each other, and handed
// to its outputs.
#pragma once

#include <string>
#include <vector>

#include "native/operator.h"

namespace vitrify {

constexpr int kMaxTerms = 3;

// One axis of a tensor: a fixed size, or a sum of named dimensions.
struct Extent {
  int64_t fixed = -1;
  int terms = 0;
  int dims[kMaxTerms] = {};  // Places in Shapes::names.
};

// An operator's dimension names, read once from its contract.
class Shapes {
 public:
  explicit Shapes(const Operator& op);

  const Operator& op() const { return *op_; }
  const std::vector<std::string>& names() const { return names_; }
  const Extent& input(int index, int axis) const { return inputs_[index * kMaxRank + axis]; }
  const Extent& output(int index, int axis) const { return outputs_[index * kMaxRank + axis]; }

 private:
  Extent parse(const char* text);

  const Operator* op_;
  std::vector<std::string> names_;
  std::vector<Extent> inputs_;
  std::vector<Extent> outputs_;
};

// What one node's or one run's dimensions are. Sizes that are not known yet are negative.
class Sizes {
 public:
  explicit Sizes(const Shapes& shapes) : shapes_(shapes), sizes_(shapes.names().size(), -1) {}

  // Takes in an input's shape. Throws OpError if a size contradicts the contract or another input.
  void learn(int input, const int64_t* dims);
  // Holds every input's sums of dimensions against what was learned; `inputs` has all of them. Throws OpError.
  void check_sums(const Tensor* inputs) const;
  int64_t of(const Extent& extent) const;
  // Of the name at this place of Shapes::names.
  int64_t of(int dim) const { return sizes_[static_cast<size_t>(dim)]; }

 private:
  const Shapes& shapes_;
  std::vector<int64_t> sizes_;
};

}  // namespace vitrify
