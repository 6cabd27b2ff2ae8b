#include "chat/loop.hpp"

#include "chat/operations.hpp"

namespace l4::chat {

bool Loop::fetch(Value& item) {
  while (source.next(item)) {
    if (!accepts || accepts(item)) return true;
  }
  return false;
}

bool Loop::advance(Value& item) {
  if (fetched.empty()) {
    if (!fetch(item)) return false;
  } else {
    item = std::move(fetched.back());
    fetched.pop_back();
  }
  ++index0;
  before = std::move(current);
  current = item;
  return true;
}

bool Loop::peek() {
  if (!fetched.empty()) return true;
  Value item;
  if (!fetch(item)) return false;
  fetched.push_back(std::move(item));
  return true;
}

std::int64_t Loop::length() {
  if (known_length) return *known_length;
  std::optional<std::int64_t> length = accepts ? std::nullopt : chat::length(iterable);
  if (!length) {
    std::vector<Value> rest;
    for (Value item; fetch(item);) rest.push_back(std::move(item));
    fetched.insert(fetched.begin(), std::make_move_iterator(rest.rbegin()), std::make_move_iterator(rest.rend()));
    length = index0 + 1 + static_cast<std::int64_t>(fetched.size());
  }
  known_length = length;
  return *length;
}

std::optional<Value> Loop::attribute(const std::string& name) {
  if (name == "index") return index0 + 1;
  if (name == "index0") return index0;
  if (name == "first") return index0 == 0;
  if (name == "last") return !peek();
  if (name == "length") return length();
  if (name == "revindex") return length() - index0;
  if (name == "revindex0") return length() - index0 - 1;
  if (name == "depth") return depth0 + 1;
  if (name == "depth0") return depth0;
  if (name == "previtem") return index0 == 0 ? make_undefined("there is no previous item") : *before;
  if (name == "nextitem") return peek() ? fetched.back() : make_undefined("there is no next item");
  return std::nullopt;
}

}  // namespace l4::chat
