// Calls of tools in what a model says: Llama 4's formats.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.hpp"

namespace service {

struct ToolCall {
  std::string name;
  Json arguments;  // an object
};

// Whether a text that begins so may turn out to be calls; also a text that has not begun.
bool may_be_calls(std::string_view text);

// The calls of which a whole text consists, where all of them are of these tools: JSON objects with "name" and
// "parameters" (or "arguments"), alone, in a list, or one behind the other; or a list of Python calls with literals.
std::optional<std::vector<ToolCall>> parse_calls(std::string text, const std::vector<std::string>& names);

}  // namespace service
