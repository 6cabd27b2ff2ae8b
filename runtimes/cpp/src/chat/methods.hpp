// Attributes and methods of Python's values, as far as a template may have them.
#pragma once

#include <string_view>

#include "chat/interpreter.hpp"

namespace l4::chat {

// Raises Unsupported for a method that Python's values have and this library has not.
void check_method(std::string_view name);

Value call_method(Run& run, const Method& method, const Arguments& arguments);

}  // namespace l4::chat
