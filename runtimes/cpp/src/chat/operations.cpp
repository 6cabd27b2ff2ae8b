#include "chat/operations.hpp"

#include <algorithm>

#include "chat/loop.hpp"

namespace l4::chat {

std::size_t utf8_length(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool truth(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: case Kind::none: return false;
    case Kind::boolean: case Kind::integer: return value.whole() != 0;
    case Kind::number: return value.number() != 0;
    case Kind::text: return value.text().points != 0;
    case Kind::list: case Kind::tuple: return !value.sequence().items.empty();
    case Kind::dict: return value.dict().size() != 0;
    case Kind::range: return value.range().size() != 0;
    case Kind::view: return value.view().dict->size() != 0;
    case Kind::loop: return *length(value) != 0;
    default: return true;
  }
}

const char* type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return "Undefined";
    case Kind::none: return "NoneType";
    case Kind::boolean: return "bool";
    case Kind::integer: return "int";
    case Kind::number: return "float";
    case Kind::text: return "str";
    case Kind::list: return "list";
    case Kind::tuple: return "tuple";
    case Kind::dict: return "dict";
    case Kind::range: return "range";
    case Kind::view: {
      const Part part = value.view().part;
      return part == Part::keys ? "dict_keys" : part == Part::values ? "dict_values" : "dict_items";
    }
    case Kind::stream: return "generator";
    case Kind::name_space: return "_PublicNamespace";
    case Kind::macro: return "Macro";
    case Kind::function: return "function";
    case Kind::method: return "builtin_function_or_method";
    case Kind::loop: return "LoopContext";
  }
  return "object";
}

void fail_undefined(const Value& value) {
  const auto& message = value.undefined().message;
  throw TemplateError(message == nullptr ? "a value is undefined" : *message);
}

std::optional<std::int64_t> length(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: return 0;
    case Kind::text: return static_cast<std::int64_t>(value.text().points);
    case Kind::list: case Kind::tuple: return static_cast<std::int64_t>(value.sequence().items.size());
    case Kind::dict: return static_cast<std::int64_t>(value.dict().size());
    case Kind::range: return value.range().size();
    case Kind::view: return static_cast<std::int64_t>(value.view().dict->size());
    case Kind::loop: return value.loop().length();
    default: return std::nullopt;
  }
}

}  // namespace l4::chat
