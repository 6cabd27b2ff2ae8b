// A chat template, as transformers runs it in jinja2's sandbox: trim_blocks, lstrip_blocks, break and continue, the tag
// {% generation %}, tojson, raise_exception and strftime_now.
//
// No package registry carries a Jinja for C++, so this is an own one. It is a subset of jinja2, whose rules it follows
// to the letter, names and their scopes included; what it does not know is refused when a template is opened:
// - the tags autoescape, block, extends, from, import and include;
// - filters for HTML, for the format of texts and for chance (filters.cpp has the list), the tests escaped, filter and
// test;
// - the functions cycler, joiner and lipsum; methods such as str.format (methods.cpp);
// - names with characters beyond ASCII.
// What only shows when it runs is refused then: integers beyond 64 bits, texts formatted with %, and what Python prints
// with its address in memory.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "chat/value.hpp"

namespace l4::chat {

struct TemplateNode;

using Variables = std::unordered_map<std::string, Value>;

class Template {
 public:
  // Raises TemplateError where jinja2 cannot compile it, and Unsupported.
  explicit Template(std::string_view source);
  ~Template();

  // Raises TemplateError for what goes wrong in it, and LimitExceeded. `longest`: the most characters that it may
  // write.
  std::string render(const Variables& variables, std::size_t longest, Budget& budget) const;

 private:
  std::unique_ptr<TemplateNode> tree_;
};

}  // namespace l4::chat
