// For operators that compute each row of [batch, tokens, width] by itself: how the rows become tasks, and the columns
// of the modulation table that go with them.
#pragma once

#include <string>

#include "native/operator.h"

namespace vitrify {

// A task has at least this many elements, a few rows. Waking a pool costs more than two such tasks.
constexpr size_t kRowsTask = 16384;

// Runs body(first, last) over the rows. Where the cuts fall depends on the shape alone: the thread count cannot change
// which elements a vector register holds together.
template <typename Body>
void for_rows(size_t rows, size_t width, const Parallel& parallel, const Body& body) {
  if (rows == 0 || width == 0) return;
  const size_t each = (kRowsTask + width - 1) / width;
  const size_t tasks = (rows + each - 1) / each;
  (tasks > 2 ? parallel : Parallel()).for_each(tasks, [&](size_t task) {
    body(task * each, rows - task * each < each ? rows : (task + 1) * each);
  });
}

// An attribute that is a place among the columns of the modulation table.
inline int64_t columns_at(const Node& node, const char* attribute) {
  const int64_t at = node.integer(attribute);
  if (at >= 0) return at;
  throw OpError(std::string("attribute ") + attribute + " is " + std::to_string(at) + ", expected 0 or more");
}

// The first of `width` columns at `at` in the first row of modulation: [batch, columns]. Throws where it has fewer.
inline const float* columns_of(const Tensor& modulation, const char* attribute, int64_t at, int64_t width) {
  const int64_t columns = modulation.dims[1];
  if (width <= columns && at <= columns - width) return modulation.as<const float>() + at;
  throw OpError("modulation has " + std::to_string(columns) + " along columns, expected at least " +
                std::to_string(at) + " (" + attribute + ") + " + std::to_string(width) + " (width)");
}

}  // namespace vitrify
