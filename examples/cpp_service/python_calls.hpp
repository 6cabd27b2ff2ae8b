// Calls as Python writes them, with literals: [f(a=1, b="x"), g()].
#pragma once

#include <string_view>
#include <vector>

#include "tool_calls.hpp"

namespace service {

// Throws std::invalid_argument for a text that is anything else.
std::vector<ToolCall> python_calls(std::string_view text);

}  // namespace service
