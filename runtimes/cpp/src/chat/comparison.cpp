// How values compare, hash and contain one another.
#include <cmath>
#include <functional>

#include "chat/failure.hpp"
#include "chat/items.hpp"
#include "chat/loop.hpp"
#include "chat/operations.hpp"
#include "chat/text_find.hpp"

namespace l4::chat {

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
  throw type_error(std::string("'") + sign + "' not supported between instances of '" + type_name(a) + "' and '" +
                   type_name(b) + "'");
}

// Order of two sequences by their first difference, or by length.
template <typename Order>
bool order_sequences(const std::vector<Value>& a, const std::vector<Value>& b, Budget& budget, bool same,
                     Order&& order) {
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
      if (!item.is_text()) {
        throw type_error(std::string("'in <string>' requires string as left operand, not ") + type_name(item));
      }
      budget.step(container.string().size() / 16);
      return found_in(container.string(), item.string()) != std::string::npos;
    case Kind::dict: return container.dict().find(item, budget) != nullptr;
    case Kind::undefined:
    case Kind::list:
    case Kind::tuple:
    case Kind::range:
    case Kind::view:
    case Kind::stream: break;
    default: throw type_error(std::string("argument of type '") + type_name(container) + "' is not iterable");
  }
  if (container.is(Kind::view) && container.view().part == Part::keys) {
    return container.view().dict->find(item, budget) != nullptr;
  }
  Items items(container, budget);
  Value next;
  while (items.next(next)) {
    if (equals(next, item, budget)) return true;
  }
  return false;
}

}  // namespace l4::chat
