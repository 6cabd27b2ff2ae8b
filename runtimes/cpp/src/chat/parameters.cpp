#include "chat/parameters.hpp"

#include <algorithm>

#include "chat/operations.hpp"

namespace l4::chat {

Parameters::Parameters(std::string_view function, const Arguments& arguments, std::vector<std::string_view> names)
    : function_(function), names_(std::move(names)), values_(names_.size()) {
  if (arguments.positional.size() > names_.size()) {
    throw type_error(function_ + "() takes at most " + std::to_string(names_.size()) + " arguments");
  }
  std::copy(arguments.positional.begin(), arguments.positional.end(), values_.begin());
  for (const auto& [name, value] : arguments.named) {
    const auto index = static_cast<std::size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
    if (index == names_.size()) throw type_error(function_ + "() got an unexpected keyword argument '" + name + "'");
    if (values_[index]) throw type_error(function_ + "() got multiple values for argument '" + name + "'");
    values_[index] = value;
  }
}

Value Parameters::required(std::size_t index) const {
  if (!values_[index]) {
    throw type_error(function_ + "() missing a required argument: '" + std::string(names_[index]) + "'");
  }
  return *values_[index];
}

std::int64_t whole_number(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_whole()) {
    throw type_error(std::string("'") + type_name(value) + "' object cannot be interpreted as an integer");
  }
  return value.whole();
}

const std::string& string_of(const Value& value, std::string_view what) {
  if (!value.is_text()) throw type_error(std::string(what) + " must be str, not " + type_name(value));
  return value.string();
}

}  // namespace l4::chat
