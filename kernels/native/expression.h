// The small arithmetic in which the manifest states grids, sizes and arguments: `cdiv(tokens, BLOCK_M) * heads`.
// kernels/aot/expressions.py defines it: whole numbers, names, parentheses, + - * / %, cdiv, min, max, power.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

namespace vitrify {

using Numbers = std::map<std::string, int64_t>;

class ExpressionError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws ExpressionError for a form outside the language, an unknown name, a division that is not exact, or a number
// beyond 64 bits.
int64_t evaluate(const std::string& expression, const Numbers& values);

}  // namespace vitrify
