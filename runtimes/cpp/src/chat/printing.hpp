// Values as text: Python's str() and repr(), and json.dumps.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "chat/budget.hpp"
#include "chat/value.hpp"

namespace l4::chat {

// str(value). Raises TemplateError for what Python prints with an address, such as a function.
Value text_of(const Value& value, Budget& budget);
void append_text(std::string& out, const Value& value, Budget& budget);
std::string repr(const Value& value, Budget& budget);
std::string repr(std::string_view text);

struct JsonStyle {
  bool ascii = false;
  bool sorted = false;
  std::optional<std::string> indent;  // of one level; nothing: all in one line
  std::string item_separator = ", ", key_separator = ": ";
};

// json.dumps. Raises TemplateError for what is no JSON.
std::string to_json(const Value& value, const JsonStyle& style, Budget& budget);

}  // namespace l4::chat
