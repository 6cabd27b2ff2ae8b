// The functions that templates find in jinja2's and transformers' environment.
#pragma once

#include <optional>
#include <string>

#include "chat/interpreter.hpp"

namespace l4::chat {

std::optional<Value> environment_function(const std::string& name);

Value call_function(Run& run, Function function, const Arguments& arguments);

}  // namespace l4::chat
