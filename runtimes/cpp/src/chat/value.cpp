#include "chat/value.hpp"

#include <algorithm>
#include <functional>

#include "chat/operations.hpp"

namespace l4::chat {

namespace {

int deepest(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  return depth;
}

int one_deeper(int depth) {
  if (depth >= kMostDepth) throw TemplateError("values are nested too deeply");
  return depth + 1;
}

std::size_t hash_of_bytes(std::string_view bytes) { return std::hash<std::string_view>()(bytes); }

}  // namespace

Text::Text(std::string text) : bytes(std::move(text)), points(utf8_length(bytes)) {}

std::int64_t Range::size() const {
  const __int128 distance = static_cast<__int128>(stop) - start;
  if (distance == 0 || (distance > 0) != (step > 0)) return 0;
  const __int128 size = (distance + step + (step > 0 ? -1 : 1)) / step;
  return size > INT64_MAX ? INT64_MAX : static_cast<std::int64_t>(size);
}

int Value::depth() const {
  switch (kind()) {
    case Kind::list: case Kind::tuple: return sequence().depth;
    case Kind::dict: return dict().depth();
    case Kind::view: return view().dict->depth() + 1;
    case Kind::stream: return stream().depth;
    case Kind::method: return method().self.depth() + 1;
    default: return 0;
  }
}

template <typename Same>
std::size_t Dict::place_of(std::size_t hash, Same&& same) const {
  const auto [begin, end] = index_.equal_range(hash);
  for (auto found = begin; found != end; ++found) {
    if (same(items_[found->second].first)) return found->second;
  }
  return items_.size();
}

const Value* Dict::find(const Value& key, Budget& budget) const {
  const std::size_t hash = hash_of(key, budget);
  const std::size_t place = place_of(hash, [&](const Value& other) { return equals(key, other, budget); });
  return place == items_.size() ? nullptr : &items_[place].second;
}

const Value* Dict::find(std::string_view key) const {
  const std::size_t place =
      place_of(hash_of_bytes(key), [&](const Value& other) { return other.is_text() && other.string() == key; });
  return place == items_.size() ? nullptr : &items_[place].second;
}

void Dict::set(const Value& key, Value value, Budget& budget) {
  const std::size_t hash = hash_of(key, budget);
  put(place_of(hash, [&](const Value& other) { return equals(key, other, budget); }), hash, key, std::move(value));
}

void Dict::set(std::string_view key, Value value) {
  const std::size_t hash = hash_of_bytes(key);
  put(place_of(hash, [&](const Value& other) { return other.is_text() && other.string() == key; }), hash, Value(key),
      std::move(value));
}

void Dict::put(std::size_t place, std::size_t hash, const Value& key, Value value) {
  depth_ = std::max(depth_, one_deeper(std::max(key.depth(), value.depth())));
  if (place == items_.size()) {
    index_.emplace(hash, place);
    items_.emplace_back(key, std::move(value));
  } else {
    items_[place].second = std::move(value);
  }
}

Value make_list(std::vector<Value> items) {
  const int depth = one_deeper(deepest(items));
  return std::shared_ptr<const Sequence>(std::make_shared<Sequence>(Sequence{std::move(items), depth}));
}

Value make_tuple(std::vector<Value> items) {
  const int depth = one_deeper(deepest(items));
  return Tuple{std::make_shared<Sequence>(Sequence{std::move(items), depth})};
}

Value make_dict(Dict dict) { return std::shared_ptr<const Dict>(std::make_shared<Dict>(std::move(dict))); }

Value make_stream(std::vector<Value> items) {
  const int depth = one_deeper(deepest(items));
  return std::make_shared<Stream>(Stream{std::move(items), 0, depth});
}

Value make_undefined(std::string message) { return Undefined{std::make_shared<const std::string>(std::move(message))}; }

}  // namespace l4::chat
