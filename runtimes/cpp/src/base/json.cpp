#include "base/json.hpp"

#include <charconv>
#include <functional>

#include "base/decimal.hpp"

namespace l4::json {

namespace {
constexpr std::size_t kMembersWithoutIndex = 16;
std::size_t hash_of(std::string_view key) { return std::hash<std::string_view>{}(key); }
}  // namespace

std::size_t Object::size() const { return members_.size(); }

const Value* Object::find(std::string_view key) const {
  if (buckets_.empty()) {
    for (const auto& [name, value] : members_) {
      if (name == key) return &value;
    }
    return nullptr;
  }
  for (std::size_t i = hash_of(key);; ++i) {
    const std::uint32_t bucket = buckets_[i & (buckets_.size() - 1)];
    if (bucket == 0) return nullptr;
    if (members_[bucket - 1].first == key) return &members_[bucket - 1].second;
  }
}

bool Object::add(std::string key, Value value) {
  if (find(key) != nullptr) return false;
  members_.emplace_back(std::move(key), std::move(value));
  if (members_.size() <= kMembersWithoutIndex) return true;
  const auto insert = [this](std::size_t index) {
    std::size_t i = hash_of(members_[index].first);
    while (buckets_[i & (buckets_.size() - 1)] != 0) ++i;
    buckets_[i & (buckets_.size() - 1)] = static_cast<std::uint32_t>(index + 1);
  };
  if (buckets_.size() < 2 * members_.size()) {
    std::size_t size = 64;
    while (size < 4 * members_.size()) size *= 2;
    buckets_.assign(size, 0);
    for (std::size_t i = 0; i < members_.size(); ++i) insert(i);
  } else {
    insert(members_.size() - 1);
  }
  return true;
}

void Object::set(std::string key, Value value) {
  if (const Value* found = find(key)) {
    *const_cast<Value*>(found) = std::move(value);
  } else {
    add(std::move(key), std::move(value));
  }
}

Value read_value(Reader& reader) {
  switch (reader.peek()) {
    case Kind::null: reader.null(); return nullptr;
    case Kind::boolean: return reader.boolean();
    case Kind::string: return reader.string();
    case Kind::number: return reader.number();
    case Kind::integer: {
      const std::string_view text = reader.raw_number();
      std::int64_t value = 0;
      if (std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc()) return value;
      return decimal(text);
    }
    case Kind::array: {
      Array items;
      reader.array([&] { items.push_back(read_value(reader)); });
      return items;
    }
    case Kind::object: {
      Object members;
      reader.object([&](std::string_view key) {
        std::string own(key);
        Value value = read_value(reader);
        if (!members.add(std::move(own), std::move(value))) reader.fail("a key appears twice in an object");
      });
      return members;
    }
  }
  return nullptr;
}

Value parse(std::string_view text, const std::string& where, Limits limits) {
  Reader reader(text, where, limits);
  Value value = read_value(reader);
  reader.end();
  return value;
}

}  // namespace l4::json
