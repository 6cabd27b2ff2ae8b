// JSON values as Python's repr writes them: messages of both runtimes show a value alike.
#pragma once

#include <string>
#include <string_view>

#include "base/json.hpp"

namespace l4 {

// A number as Python writes it: the fewest digits that give it back, with a fraction or an exponent.
std::string python_repr(double value);

// Add a text as Python's repr writes it; `is_printable` says which characters are not escaped.
void append_repr(std::string& out, std::string_view text, bool (*is_printable)(char32_t));

// null is None, true is True, texts have the quotes and escapes of Python.
std::string python_repr(const json::Value& value);

// A value as a message shows it: its repr as one line of at most 60 characters, as the Python runtime's `shown`.
std::string shown(const json::Value& value);

}  // namespace l4
