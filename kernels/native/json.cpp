#include "native/json.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <locale>
#include <sstream>

namespace vitrify {
namespace {

constexpr int kMaxDepth = 64;
const char* const kKinds[] = {"null", "a boolean", "an integer", "a real", "a string", "an array", "an object"};

}  // namespace

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}

  Json whole() {
    Json value = read(0);
    space();
    if (at_ != text_.size()) fail("something after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw JsonError("no JSON at byte " + std::to_string(at_) + ": " + what);
  }

  void space() {
    while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0')
      ++at_;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) {
    space();
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void demand(char c) {
    if (!take(c)) fail(std::string("expected '") + c + "'");
  }

  bool word(const char* word) {
    const size_t size = std::strlen(word);
    if (text_.compare(at_, size, word) != 0) return false;
    at_ += size;
    return true;
  }

  Json read(int depth) {
    if (depth > kMaxDepth) fail("nested too deep");
    space();
    Json value;
    if (peek() == '{') return object(depth);
    if (peek() == '[') return array(depth);
    if (peek() == '"') {
      value.kind_ = Json::Kind::string;
      value.string_ = string();
    } else if (word("true") || word("false")) {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = text_[at_ - 2] == 'u';
    } else if (!word("null")) {
      return number();
    }
    return value;
  }

  Json object(int depth) {
    Json value;
    value.kind_ = Json::Kind::object;
    demand('{');
    if (take('}')) return value;
    do {
      space();
      if (peek() != '"') fail("expected a name");
      const std::string name = string();
      demand(':');
      if (!value.object_.emplace(name, read(depth + 1)).second) fail("the name '" + name + "' stands twice");
    } while (take(','));
    demand('}');
    return value;
  }

  Json array(int depth) {
    Json value;
    value.kind_ = Json::Kind::array;
    demand('[');
    if (take(']')) return value;
    do {
      value.array_.push_back(read(depth + 1));
    } while (take(','));
    demand(']');
    return value;
  }

  std::string string() {
    std::string value;
    for (++at_; peek() != '"'; ++at_) {
      if (static_cast<unsigned char>(peek()) < 0x20) fail("a string without an end");
      if (peek() != '\\') {
        value += text_[at_];
        continue;
      }
      ++at_;
      const char* const plain = "\"\\/bfnrt";
      const char* const found = peek() == '\0' ? nullptr : std::strchr(plain, peek());
      // Names and expressions are ASCII: an escaped code point has nothing to say here.
      if (found == nullptr) fail("an escape that is not read here");
      value += "\"\\/\b\f\n\r\t"[found - plain];
    }
    ++at_;
    return value;
  }

  Json number() {
    const size_t start = at_;
    while (at_ < text_.size() && std::strchr("+-.eE0123456789", text_[at_]) != nullptr && text_[at_] != '\0')
      ++at_;
    const std::string digits = text_.substr(start, at_ - start);
    if (digits.empty()) fail("expected a value");
    Json value;
    char* end = nullptr;
    if (digits.find_first_of(".eE") == std::string::npos) {
      errno = 0;
      value.kind_ = Json::Kind::integer;
      value.integer_ = std::strtoll(digits.c_str(), &end, 10);
      if (*end != '\0' || errno != 0) fail("'" + digits + "' is no integer of 64 bits");
      return value;
    }
    value.kind_ = Json::Kind::real;
    // strtod would follow the process's locale.
    std::istringstream stream(digits);
    stream.imbue(std::locale::classic());
    stream >> value.real_;
    if (stream.fail() || stream.peek() != std::char_traits<char>::eof()) fail("'" + digits + "' is no number");
    return value;
  }

  const std::string& text_;
  size_t at_ = 0;
};

Json Json::parse(const std::string& text) {
  return JsonReader(text).whole();
}

const Json& Json::expect(Kind kind, const std::string& what) const {
  if (kind_ != kind) {
    throw JsonError(what + " is " + kKinds[static_cast<int>(kind_)] + ", expected " + kKinds[static_cast<int>(kind)]);
  }
  return *this;
}

const std::string& Json::string(const std::string& what) const {
  return expect(Kind::string, what).string_;
}

int64_t Json::integer(const std::string& what) const {
  return expect(Kind::integer, what).integer_;
}

double Json::number(const std::string& what) const {
  return kind_ == Kind::integer ? static_cast<double>(integer_) : expect(Kind::real, what).real_;
}

bool Json::boolean(const std::string& what) const {
  return expect(Kind::boolean, what).boolean_;
}

const std::vector<Json>& Json::array(const std::string& what) const {
  return expect(Kind::array, what).array_;
}

const std::map<std::string, Json>& Json::object(const std::string& what) const {
  return expect(Kind::object, what).object_;
}

const Json& Json::at(const std::string& field, const std::string& what) const {
  const auto& fields = object(what);
  const auto found = fields.find(field);
  if (found == fields.end()) throw JsonError(what + " has no field '" + field + "'");
  return found->second;
}

}  // namespace vitrify
