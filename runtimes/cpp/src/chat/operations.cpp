#include "chat/operations.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "chat/items.hpp"
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

namespace {

// -1, 0, 1, or 2 where one is no number. An integer of 64 bits and a double are compared exactly.
int order_numbers(const Value& a, const Value& b) {
  if (a.is_whole() && b.is_whole()) return (a.whole() > b.whole()) - (a.whole() < b.whole());
  if (!a.is_whole() && !b.is_whole()) {
    const double x = a.number(), y = b.number();
    return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
  }
  if (b.is_whole()) {
    const int order = order_numbers(b, a);
    return order == 2 ? 2 : -order;
  }
  const std::int64_t whole = a.whole();
  const double number = b.number();
  if (std::isnan(number)) return 2;
  if (number >= 0x1p63) return -1;
  if (number < -0x1p63) return 1;
  const auto floor = static_cast<std::int64_t>(std::floor(number));
  if (whole != floor) return whole < floor ? -1 : 1;
  return number > static_cast<double>(floor) ? -1 : 0;
}

bool equal_items(const std::vector<Value>& a, const std::vector<Value>& b, Budget& budget) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!equals(a[i], b[i], budget)) return false;
  }
  return true;
}

bool equal_dicts(const Dict& a, const Dict& b, Budget& budget) {
  if (a.size() != b.size()) return false;
  for (const auto& [key, value] : a.items()) {
    const Value* other = b.find(key, budget);
    if (other == nullptr || !equals(value, *other, budget)) return false;
  }
  return true;
}

bool equal_ranges(const Range& a, const Range& b) {
  const std::int64_t size = a.size();
  return size == b.size() && (size == 0 || (a.start == b.start && (size == 1 || a.step == b.step)));
}

[[noreturn]] void not_compared(const Value& value) {
  throw TemplateError(std::string("a comparison with a ") + type_name(value) + ", which this library does not do");
}

[[noreturn]] void not_ordered(const Value& a, const Value& b, const char* sign) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  throw type_error(std::string("'") + sign + "' not supported between instances of '" + type_name(a) + "' and '" + type_name(b) + "'");
}

// Order of two sequences by their first difference, or by length.
template <typename Order>
bool order_sequences(const std::vector<Value>& a, const std::vector<Value>& b, Budget& budget, bool same, Order&& order) {
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    if (!equals(a[i], b[i], budget)) return order(a[i], b[i]);
  }
  return a.size() != b.size() ? a.size() < b.size() : same;
}

}  // namespace

bool equals(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_numeric() && b.is_numeric()) return order_numbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::undefined: case Kind::none: return true;
    case Kind::text:
      budget.step(a.string().size() / 64);
      return a.string() == b.string();
    case Kind::list: case Kind::tuple: return equal_items(a.sequence().items, b.sequence().items, budget);
    case Kind::dict: return equal_dicts(a.dict(), b.dict(), budget);
    case Kind::range: return equal_ranges(a.range(), b.range());
    case Kind::stream: return &a.stream() == &b.stream();
    case Kind::name_space: return &a.name_space() == &b.name_space();
    case Kind::macro: return &a.macro() == &b.macro();
    case Kind::function: return a.function() == b.function();
    case Kind::loop: return &a.loop() == &b.loop();
    default: not_compared(a);
  }
}

bool less(const Value& a, const Value& b, const char* sign, Budget& budget) {
  budget.step();
  if (a.is_numeric() && b.is_numeric()) return order_numbers(a, b) == -1;
  if (a.is_text() && b.is_text()) return a.string() < b.string();  // the order of UTF-8 is that of its characters
  if (a.kind() == b.kind() && (a.is(Kind::list) || a.is(Kind::tuple))) {
    return order_sequences(a.sequence().items, b.sequence().items, budget, false,
                           [&](const Value& x, const Value& y) { return less(x, y, sign, budget); });
  }
  if (a.is(Kind::view) && b.is(Kind::view)) not_compared(a);
  not_ordered(a, b, sign);
}

bool at_most(const Value& a, const Value& b, const char* sign, Budget& budget) {
  budget.step();
  if (a.is_numeric() && b.is_numeric()) return order_numbers(a, b) == -1 || order_numbers(a, b) == 0;
  if (a.is_text() && b.is_text()) return a.string() <= b.string();
  if (a.kind() == b.kind() && (a.is(Kind::list) || a.is(Kind::tuple))) {
    return order_sequences(a.sequence().items, b.sequence().items, budget, true,
                           [&](const Value& x, const Value& y) { return at_most(x, y, sign, budget); });
  }
  return less(a, b, sign, budget);  // which raises
}

std::size_t hash_of(const Value& value, Budget& budget) {
  budget.step();
  switch (value.kind()) {
    case Kind::undefined: return 1;
    case Kind::none: return 2;
    case Kind::boolean: case Kind::integer: return std::hash<std::int64_t>()(value.whole());
    case Kind::number: {
      const double number = value.number();
      const bool whole = number >= -0x1p63 && number < 0x1p63 && number == std::floor(number);
      return whole ? std::hash<std::int64_t>()(static_cast<std::int64_t>(number)) : std::hash<double>()(number);
    }
    case Kind::text:
      budget.step(value.string().size() / 64);
      return std::hash<std::string_view>()(value.string());
    case Kind::tuple: {
      std::size_t hash = 3;
      for (const Value& item : value.sequence().items) hash = hash * 1'000'003 ^ hash_of(item, budget);
      return hash;
    }
    case Kind::range: return 4;
    case Kind::stream: return std::hash<const void*>()(&value.stream());
    case Kind::macro: return std::hash<const void*>()(&value.macro());
    case Kind::loop: return std::hash<const void*>()(&value.loop());
    case Kind::name_space: return std::hash<const void*>()(&value.name_space());
    case Kind::function: return 5 + static_cast<std::size_t>(value.function());
    case Kind::method: not_compared(value);
    default: throw type_error(std::string("unhashable type: '") + type_name(value) + "'");
  }
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  switch (container.kind()) {
    case Kind::text:
      if (!item.is_text()) throw type_error(std::string("'in <string>' requires string as left operand, not ") + type_name(item));
      budget.step(container.string().size() / 16);
      return container.string().find(item.string()) != std::string::npos;
    case Kind::dict: return container.dict().find(item, budget) != nullptr;
    case Kind::undefined: case Kind::list: case Kind::tuple: case Kind::range: case Kind::view: case Kind::stream: break;
    default: throw type_error(std::string("argument of type '") + type_name(container) + "' is not iterable");
  }
  if (container.is(Kind::view) && container.view().part == Part::keys) return container.view().dict->find(item, budget) != nullptr;
  Items items(container, budget);
  Value next;
  while (items.next(next)) {
    if (equals(next, item, budget)) return true;
  }
  return false;
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

std::string_view characters(const Text& text, std::size_t first, std::size_t behind) {
  const std::string_view bytes = text.bytes;
  if (text.ascii()) return bytes.substr(first, behind - first);
  std::size_t at = 0, point = 0;
  for (; point < first; ++point) at += utf8::width(static_cast<unsigned char>(bytes[at]));
  const std::size_t begin = at;
  for (; point < behind; ++point) at += utf8::width(static_cast<unsigned char>(bytes[at]));
  return bytes.substr(begin, at - begin);
}

std::optional<Value> subscript(const Value& value, const Value& key, Budget& budget) {
  switch (value.kind()) {
    case Kind::undefined: fail_undefined(value);
    case Kind::dict: {
      if (key.is(Kind::list) || key.is(Kind::dict)) return std::nullopt;  // unhashable: a TypeError
      const Value* found = value.dict().find(key, budget);
      return found == nullptr ? std::nullopt : std::optional<Value>(*found);
    }
    case Kind::text: case Kind::list: case Kind::tuple: case Kind::range: break;
    default: return std::nullopt;
  }
  if (!key.is_whole()) return std::nullopt;
  const std::int64_t size = *length(value);
  std::int64_t index = key.whole();
  if (index < 0) index += size;
  if (index < 0 || index >= size) return std::nullopt;
  if (value.is(Kind::range)) return Value(value.range().at(index));
  if (!value.is_text()) return value.sequence().items[static_cast<std::size_t>(index)];
  if (!value.text().ascii()) budget.step(value.string().size() / 16);
  return Value(characters(value.text(), static_cast<std::size_t>(index), static_cast<std::size_t>(index) + 1));
}

namespace {

struct Bounds {
  std::int64_t start, step, count;
};

std::optional<std::int64_t> slice_index(const Value& value) {
  if (value.is_none()) return std::nullopt;
  if (!value.is_whole()) throw type_error("slice indices must be integers or None or have an __index__ method");
  return value.whole();
}

// As Python's slice.indices.
Bounds bounds_of(std::int64_t size, const Value& start, const Value& stop, const Value& step) {
  const std::int64_t by = slice_index(step).value_or(1);
  if (by == 0) throw value_error("slice step cannot be zero");
  const std::int64_t lowest = by < 0 ? -1 : 0, highest = by < 0 ? size - 1 : size;
  const auto clipped = [&](const Value& value, std::int64_t otherwise) {
    const std::optional<std::int64_t> index = slice_index(value);
    if (!index) return otherwise;
    return std::clamp(*index < 0 ? *index + size : *index, lowest, highest);
  };
  const std::int64_t from = clipped(start, by < 0 ? highest : lowest), to = clipped(stop, by < 0 ? lowest : highest);
  return {from, by, Range{from, to, by}.size()};
}

Value slice_text(const Text& text, const Bounds& bounds, Budget& budget) {
  budget.make(text.bytes.size());
  const auto start = static_cast<std::size_t>(bounds.start), count = static_cast<std::size_t>(bounds.count);
  if (bounds.count == 0) return "";
  if (bounds.step == 1) return characters(text, start, start + count);
  std::vector<std::string_view> points;
  points.reserve(text.points);
  for (std::size_t at = 0; at < text.bytes.size();) {
    const std::size_t width = utf8::width(static_cast<unsigned char>(text.bytes[at]));
    points.push_back(std::string_view(text.bytes).substr(at, width));
    at += width;
  }
  std::string out;
  for (std::int64_t i = 0; i < bounds.count; ++i) out += points[static_cast<std::size_t>(bounds.start + i * bounds.step)];
  return out;
}

}  // namespace

Value slice(const Value& value, const Value& start, const Value& stop, const Value& step, Budget& budget) {
  switch (value.kind()) {
    case Kind::undefined: fail_undefined(value);
    case Kind::text: case Kind::list: case Kind::tuple: case Kind::range: break;
    case Kind::dict: throw type_error("unhashable type: 'slice'");
    default: throw type_error(std::string("'") + type_name(value) + "' object is not subscriptable");
  }
  const Bounds bounds = bounds_of(*length(value), start, stop, step);
  if (value.is_text()) return slice_text(value.text(), bounds, budget);
  if (value.is(Kind::range)) {
    const Range& range = value.range();
    const __int128 by = static_cast<__int128>(range.step) * bounds.step;
    const __int128 first = range.start + static_cast<__int128>(range.step) * bounds.start, behind = first + by * bounds.count;
    for (const __int128 number : {by, first, behind}) {
      if (number > INT64_MAX || number < INT64_MIN) throw overflow();
    }
    return Range{static_cast<std::int64_t>(first), static_cast<std::int64_t>(behind), static_cast<std::int64_t>(by)};
  }
  budget.make(static_cast<std::size_t>(bounds.count) * sizeof(Value));
  std::vector<Value> items;
  items.reserve(static_cast<std::size_t>(bounds.count));
  for (std::int64_t i = 0; i < bounds.count; ++i) {
    items.push_back(value.sequence().items[static_cast<std::size_t>(bounds.start + i * bounds.step)]);
  }
  return value.is(Kind::tuple) ? make_tuple(std::move(items)) : make_list(std::move(items));
}

}  // namespace l4::chat
