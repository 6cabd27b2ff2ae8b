// What ends a template: its own fault, a limit, or something that this library does not know.
#pragma once

#include <stdexcept>
#include <string>

namespace l4::chat {

// Something goes wrong in a template, as it would in Python: the message is Python's where that says something.
class TemplateError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A template exceeds a limit.
class LimitExceeded : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A template asks for what jinja2 has and this library has not; `what` names it.
class Unsupported : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline TemplateError type_error(const std::string& what) { return TemplateError("TypeError: " + what); }
inline TemplateError value_error(const std::string& what) { return TemplateError(what); }
inline TemplateError overflow() {
  return TemplateError("an integer beyond 64 bits, which this library does not compute with");
}

}  // namespace l4::chat
