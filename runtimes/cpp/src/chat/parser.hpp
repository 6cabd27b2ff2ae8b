// The tree of a template's tokens: jinja2's grammar, with the tags that chat templates use.
#pragma once

#include <memory>
#include <string_view>

#include "chat/statement_nodes.hpp"

namespace l4::chat {

constexpr int kMostNesting = 120;   // of brackets and tags in one another, while they are parsed

// Raises TemplateError where jinja2 cannot parse it, and Unsupported for tags, filters, tests and methods of jinja2
// that are not known here.
std::unique_ptr<TemplateNode> parse_template(std::string_view source);

}  // namespace l4::chat
