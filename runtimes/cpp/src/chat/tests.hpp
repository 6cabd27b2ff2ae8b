// jinja2's tests: what stands behind `is`.
#pragma once

#include <string>

#include "chat/interpreter.hpp"

namespace l4::chat {

// Raises Unsupported for a test of jinja2 that is not known here, TemplateError for one that jinja2 does not know
// either.
void check_test(const std::string& name);

bool apply_test(Run& run, const std::string& name, const Value& value, const Arguments& arguments);

}  // namespace l4::chat
