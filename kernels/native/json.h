// JSON as the manifest of the GPU kernels has it: read whole, checked while it is read.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace vitrify {

// What is wrong with a text, and where.
class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  enum class Kind { null, boolean, integer, real, string, array, object };

  // Throws JsonError for what is no JSON, for a name that stands twice and for nesting beyond 64.
  static Json parse(const std::string& text);

  Kind kind() const { return kind_; }
  // Each throws JsonError, naming `what`, if the value is of another kind.
  const std::string& string(const std::string& what) const;
  int64_t integer(const std::string& what) const;
  double number(const std::string& what) const;  // An integer or a real.
  bool boolean(const std::string& what) const;
  const std::vector<Json>& array(const std::string& what) const;
  const std::map<std::string, Json>& object(const std::string& what) const;
  // The field of an object; a missing one is named.
  const Json& at(const std::string& field, const std::string& what) const;

 private:
  friend class JsonReader;
  const Json& expect(Kind kind, const std::string& what) const;

  Kind kind_ = Kind::null;
  bool boolean_ = false;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string string_;
  std::vector<Json> array_;
  std::map<std::string, Json> object_;
};

}  // namespace vitrify
