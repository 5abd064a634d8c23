// Failures at the C interface: nothing may unwind through it, so that what was thrown waits for vitrify_error().
#pragma once

#include <exception>
#include <string>

namespace vitrify {

// Of the calling thread.
std::string& last_error();

// Runs `body`; false, with the reason in last_error(), if it throws.
template <typename Body>
bool guarded(const std::string& where, const Body& body) noexcept {
  try {
    body();
    return true;
  } catch (const std::exception& error) {
    last_error() = where + (where.empty() ? "" : ": ") + error.what();
    return false;
  }
}

}  // namespace vitrify
