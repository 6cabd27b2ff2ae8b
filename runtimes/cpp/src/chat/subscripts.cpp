// value[key] and value[start:stop:step].
#include <algorithm>

#include "base/utf8.hpp"
#include "chat/failure.hpp"
#include "chat/operations.hpp"

namespace l4::chat {

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
  budget.make(text.points * sizeof(std::string_view));
  std::vector<std::string_view> points;
  points.reserve(text.points);
  for (std::size_t at = 0; at < text.bytes.size();) {
    const std::size_t width = utf8::width(static_cast<unsigned char>(text.bytes[at]));
    points.push_back(std::string_view(text.bytes).substr(at, width));
    at += width;
  }
  std::string out;
  for (std::int64_t i = 0; i < bounds.count; ++i) {
    out += points[static_cast<std::size_t>(bounds.start + i * bounds.step)];
  }
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
    const __int128 first = range.start + static_cast<__int128>(range.step) * bounds.start,
                   behind = first + by * bounds.count;
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
