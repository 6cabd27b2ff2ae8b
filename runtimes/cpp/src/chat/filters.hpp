// jinja2's filters, and transformers' own `tojson`.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>

#include "chat/interpreter.hpp"
#include "chat/parameters.hpp"

namespace l4::chat {

// Raises Unsupported for a filter of jinja2 that is not known here, TemplateError for one that jinja2 does not know
// either.
void check_filter(const std::string& name);

Value apply_filter(Run& run, const std::string& name, const Value& value, const Arguments& arguments);

using Filter = Value (*)(Run& run, const Value& value, const Arguments& arguments);
using Filters = std::unordered_map<std::string_view, Filter>;

// Those for texts and numbers, those for sequences, and those that choose, map and order items.
const Filters& text_filters();
const Filters& sequence_filters();
const Filters& choosing_filters();

// What `attribute` of a filter gets of an item: "a.0.b" gets item.a[0].b.
class Getter {
 public:
  // `lowers`: texts are compared without case.
  Getter(const std::optional<Value>& attribute, bool lowers, Budget& budget);
  Value operator()(Value item) const;

 private:
  std::vector<Value> path_;
  bool lowers_;
  Budget& budget_;
};

// A text in small letters; other values as they are.
Value without_case(const Value& value, Budget& budget);

}  // namespace l4::chat
