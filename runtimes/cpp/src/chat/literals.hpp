// Numbers and strings as they stand in a template's code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace l4::chat {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

struct NumberLiteral {
  std::size_t behind;  // where it ends
  bool is_whole;
  std::int64_t integer = 0;  // one of them
  double number = 0;
};

// The number at `at` of a source, where a digit stands. Raises Unsupported beyond 64 bits.
NumberLiteral number_at(std::string_view source, std::size_t at);

// What a string literal without its quotes means: its escapes, which jinja2 resolves after it has written other than
// ASCII characters as escapes. Raises TemplateError, and Unsupported.
std::string unescaped(std::string_view literal);

}  // namespace l4::chat
