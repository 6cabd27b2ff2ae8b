// What calls of the C ABI give, as the conformance set writes it down.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/json.hpp"
#include "l4export.h"
#include "storage/safetensors_writer.hpp"

namespace conformance {

// A call that was refused.
struct Refused {
  l4_status status;
  std::string message;
};

inline void check(l4_status status) {
  if (status != L4_OK) throw Refused{status, l4_last_error()};
}

// A handle, closed when it goes.
template <typename T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

template <typename T, typename Make>
Handle<T> made(void (*close)(T*), Make&& make) {
  T* handle = nullptr;
  check(make(&handle));
  return Handle<T>(handle, close);
}

// Text or ids of a call that takes a buffer and always says the whole count.
template <typename T, typename Give>
std::vector<T> all_of(Give&& give) {
  std::size_t count = 0;
  check(give(nullptr, 0, &count));
  std::vector<T> values(count);
  check(give(values.data(), values.size(), &count));
  return values;
}

template <typename T>
l4::json::Array listed(const std::vector<T>& values) {
  l4::json::Array list;
  for (const T value : values) list.emplace_back(static_cast<std::int64_t>(value));
  return list;
}

inline l4::json::Object ids_of(const std::vector<std::int32_t>& ids) {
  l4::json::Object told;
  told.add("ids", listed(ids));
  return told;
}

inline l4::json::Object text_of(const std::vector<char>& text) {
  l4::json::Object told;
  told.add("text", std::string(text.begin(), text.end()));
  return told;
}

// A tensor with its bytes, float32.
inline l4::storage::NewTensor tensor(std::string name, std::vector<std::int64_t> shape, const float* values,
                                     std::size_t count) {
  std::string bytes(reinterpret_cast<const char*>(values), count * sizeof(float));
  return {std::move(name), "F32", std::move(shape), [bytes = std::move(bytes)](const auto& give) { give(bytes); }};
}

}  // namespace conformance
