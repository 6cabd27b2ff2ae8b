// The arguments of a call of the conformance set, which is JSON.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/json.hpp"

namespace conformance {

using l4::json::Value;

inline const Value& argument(const Value& call, const char* name) {
  const Value* found = call.find(name);
  if (found == nullptr) throw std::runtime_error(std::string("a call has no ") + name);
  return *found;
}

inline std::int64_t number_or(const Value& call, const char* name, std::int64_t otherwise) {
  const Value* found = call.find(name);
  return found == nullptr || found->is_null() ? otherwise : found->integer();
}

inline double real_or(const Value& object, const char* name, double otherwise) {
  const Value* found = object.find(name);
  return found == nullptr ? otherwise : found->number();
}

inline bool flag(const Value& call, const char* name) {
  const Value* found = call.find(name);
  return found != nullptr && found->boolean();
}

// With room for one at least: the pointer to no integers is not NULL, which would mean something else.
template <typename T>
std::vector<T> integers(const Value& list) {
  std::vector<T> found;
  found.reserve(list.array().size() + 1);
  for (const Value& item : list.array()) found.push_back(static_cast<T>(item.integer()));
  return found;
}

}  // namespace conformance
