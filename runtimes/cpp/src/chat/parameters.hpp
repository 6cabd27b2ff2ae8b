// Arguments matched with the names of parameters, as Python does for a function.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/interpreter.hpp"

namespace l4::chat {

class Parameters {
 public:
  // Raises TemplateError for arguments that are too many, of another name, or given twice.
  Parameters(std::string_view function, const Arguments& arguments, std::vector<std::string_view> names);

  const std::optional<Value>& at(std::size_t index) const { return values_[index]; }
  Value required(std::size_t index) const;  // raises TemplateError where it is not given
  Value get(std::size_t index, Value otherwise) const {
    return values_[index] ? *values_[index] : std::move(otherwise);
  }

 private:
  std::string function_;
  std::vector<std::string_view> names_;
  std::vector<std::optional<Value>> values_;
};

// A value where Python takes an integer, or a text. Raises TemplateError for others.
std::int64_t whole_number(const Value& value);
const std::string& string_of(const Value& value, std::string_view what);

}  // namespace l4::chat
