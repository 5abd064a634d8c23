#include "native/expression.h"

#include <algorithm>
#include <cctype>
#include <vector>

namespace vitrify {
namespace {

constexpr int kMaxDepth = 64;

// Recursive descent: sum = product {+|- product}, product = factor {*|/|% factor}, factor = number | name | call |
// (sum).
class Evaluation {
 public:
  Evaluation(const std::string& text, const Numbers& values) : text_(text), values_(values) {}

  int64_t whole() {
    const int64_t value = sum(0);
    if (next() != '\0') fail("'" + text_.substr(at_) + "' is outside the language");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw ExpressionError("expression '" + text_ + "': " + what);
  }

  char next() {
    while (at_ < text_.size() && text_[at_] == ' ')
      ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool take(char c) {
    if (next() != c) return false;
    ++at_;
    return true;
  }

  void fits(bool overflow) const {
    if (overflow) fail("a number beyond 64 bits");
  }

  int64_t sum(int depth) {
    if (depth > kMaxDepth) fail("nested too deep");
    int64_t value = product(depth);
    for (;;) {
      if (take('+')) {
        const int64_t other = product(depth);
        fits(__builtin_add_overflow(value, other, &value));
      } else if (take('-')) {
        const int64_t other = product(depth);
        fits(__builtin_sub_overflow(value, other, &value));
      } else {
        return value;
      }
    }
  }

  int64_t product(int depth) {
    int64_t value = factor(depth);
    for (;;) {
      if (take('*')) {
        const int64_t other = factor(depth);
        fits(__builtin_mul_overflow(value, other, &value));
      } else if (take('/')) {
        const int64_t by = factor(depth);
        if (by <= 0 || value % by != 0) {
          fail(std::to_string(value) + " / " + std::to_string(by) + " is no whole number");
        }
        value /= by;
      } else if (take('%')) {
        const int64_t by = factor(depth);
        if (value < 0 || by <= 0) fail("the sides of % must be positive");
        value %= by;
      } else {
        return value;
      }
    }
  }

  int64_t factor(int depth) {
    if (take('(')) {
      const int64_t value = sum(depth + 1);
      if (!take(')')) fail("a parenthesis is not closed");
      return value;
    }
    std::string word;
    next();
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_'))
      word += text_[at_++];
    if (word.empty()) fail("a number or a name is missing");
    if (std::isdigit(static_cast<unsigned char>(word[0]))) return literal(word);
    if (next() == '(') return call(word, depth);
    const auto found = values_.find(word);
    if (found == values_.end()) fail("name '" + word + "' is unknown");
    return found->second;
  }

  int64_t literal(const std::string& word) const {
    int64_t value = 0;
    for (const char c : word) {
      if (!std::isdigit(static_cast<unsigned char>(c))) fail("'" + word + "' is no number");
      fits(__builtin_mul_overflow(value, int64_t{10}, &value));
      fits(__builtin_add_overflow(value, int64_t{c - '0'}, &value));
    }
    return value;
  }

  int64_t call(const std::string& name, int depth) {
    std::vector<int64_t> given;
    take('(');
    do {
      given.push_back(sum(depth + 1));
    } while (take(','));
    if (!take(')')) fail("a parenthesis is not closed");
    if (given.size() != (name == "power" ? 1U : 2U)) fail(name + " has the wrong number of arguments");
    const int64_t a = given[0];
    if (name == "power") {
      if (a < 1 || a > int64_t{1} << 62) fail("power needs a positive number");
      int64_t value = 1;
      while (value < a)
        value *= 2;
      return value;
    }
    const int64_t b = given[1];
    if (name == "min") return std::min(a, b);
    if (name == "max") return std::max(a, b);
    if (name != "cdiv") fail("function '" + name + "' is unknown");
    if (a < 0 || b <= 0) fail("the sides of cdiv must be positive");
    return a / b + (a % b != 0);
  }

  const std::string& text_;
  const Numbers& values_;
  size_t at_ = 0;
};

}  // namespace

int64_t evaluate(const std::string& expression, const Numbers& values) {
  return Evaluation(expression, values).whole();
}

}  // namespace vitrify
