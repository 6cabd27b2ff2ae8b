// What Python does with values: truth, comparison, arithmetic, subscripts. Raises TemplateError where Python raises.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

#include "chat/budget.hpp"
#include "chat/value.hpp"

namespace l4::chat {

std::size_t utf8_length(std::string_view text);  // in characters; of valid UTF-8

bool truth(const Value& value);
const char* type_name(const Value& value);  // type(value).__name__

bool equals(const Value& a, const Value& b, Budget& budget);
bool less(const Value& a, const Value& b, const char* sign, Budget& budget);  // a < b; `sign` is for the message
bool at_most(const Value& a, const Value& b, const char* sign, Budget& budget);  // a <= b
std::size_t hash_of(const Value& value, Budget& budget);
bool contains(const Value& container, const Value& item, Budget& budget);  // item in container

enum class Operator { add, subtract, multiply, divide, floor_divide, modulo, power };
Value compute(Operator sign, const Value& a, const Value& b, Budget& budget);
Value negative(const Value& value);
Value positive(const Value& value);

std::optional<std::int64_t> length(const Value& value);  // nothing where Python's len() raises
// value[key]; nothing where Python raises LookupError or TypeError.
std::optional<Value> subscript(const Value& value, const Value& key, Budget& budget);
Value slice(const Value& value, const Value& start, const Value& stop, const Value& step, Budget& budget);

// The characters from `first` to before `behind`.
std::string_view characters(const Text& text, std::size_t first, std::size_t behind);

// Raises as any use of an undefined value does, but printing, iterating and asking for truth.
[[noreturn]] void fail_undefined(const Value& value);

}  // namespace l4::chat
