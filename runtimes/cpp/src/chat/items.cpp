#include "chat/items.hpp"

#include "chat/operations.hpp"

namespace l4::chat {

bool is_iterable(const Value& value) {
  switch (value.kind()) {
    case Kind::undefined: case Kind::text: case Kind::list: case Kind::tuple: case Kind::dict: case Kind::range:
    case Kind::view: case Kind::stream: case Kind::loop: return true;
    default: return false;
  }
}

Items::Items(Value value, Budget& budget) : value_(std::move(value)), budget_(&budget) {
  if (value_.is(Kind::loop)) throw TemplateError("iterating over `loop`, which this library does not do");
  if (!is_iterable(value_)) throw type_error(std::string("'") + type_name(value_) + "' object is not iterable");
}

bool Items::next(Value& item) {
  budget_->step();
  const auto member = [&](const Dict& dict, Part part) {
    if (at_ == dict.size()) return false;
    const auto& [key, value] = dict.items()[at_++];
    item = part == Part::keys ? key : part == Part::values ? value : make_tuple({key, value});
    return true;
  };
  switch (value_.kind()) {
    case Kind::text: {
      const std::string& bytes = value_.string();
      if (at_ == bytes.size()) return false;
      const std::size_t width = utf8::width(static_cast<unsigned char>(bytes[at_]));
      budget_->make(sizeof(Text));
      item = Value(std::string_view(bytes).substr(at_, width));
      at_ += width;
      return true;
    }
    case Kind::list: case Kind::tuple: {
      const std::vector<Value>& items = value_.sequence().items;
      if (at_ == items.size()) return false;
      item = items[at_++];
      return true;
    }
    case Kind::dict: return member(value_.dict(), Part::keys);
    case Kind::view:
      budget_->make(value_.view().part == Part::items ? 4 * sizeof(Value) : 0);
      return member(*value_.view().dict, value_.view().part);
    case Kind::range:
      if (static_cast<std::int64_t>(at_) == value_.range().size()) return false;
      item = value_.range().at(static_cast<std::int64_t>(at_++));
      return true;
    case Kind::stream: {
      Stream& stream = value_.stream();
      if (stream.at == stream.items.size()) return false;
      item = stream.items[stream.at++];
      return true;
    }
    default: return false;  // undefined
  }
}

std::vector<Value> items_of(const Value& value, Budget& budget) {
  std::vector<Value> all;
  Items items(value, budget);
  for (Value item; items.next(item);) {
    budget.make(sizeof(Value));
    all.push_back(std::move(item));
  }
  return all;
}

}  // namespace l4::chat
