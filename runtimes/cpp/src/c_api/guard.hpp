// The border between C++ and the C ABI: no exception leaves, and the thread keeps the reason.
#pragma once

#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "l4export.h"

namespace l4::c_api {

void set_last_error(std::string_view message) noexcept;

// Run the body of a call; what it raises becomes a status.
template <typename Body>
l4_status guarded(Body&& body) noexcept {
  try {
    body();
    return L4_OK;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of memory: close what is not needed, or take a smaller capacity");
    return L4_BAD_INPUT;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return L4_INTERNAL;
  } catch (...) {
    set_last_error("an unknown error");
    return L4_INTERNAL;
  }
}

// An argument that must not be NULL.
template <typename T>
T& given(T* pointer, const char* name) {
  if (pointer == nullptr) throw bad_input(std::string(name) + " is NULL");
  return *pointer;
}

// Copy a caller's struct as far as its `size` reaches; what an older caller does not know has its default.
template <typename T>
T options_of(const T* from, const T& defaults) {
  T options = defaults;
  if (from == nullptr) return options;
  if (from->size < sizeof(size_t)) {
    throw bad_input("the size of a struct is not set: begin with its _DEFAULT initializer");
  }
  std::memcpy(&options, from, from->size < sizeof(T) ? from->size : sizeof(T));
  return options;
}

// Fill a caller's struct as far as its `size` reaches.
template <typename T>
void fill(T* to, T from) {
  const size_t size = given(to, "the struct").size;
  if (size < sizeof(size_t)) throw bad_input("the size of a struct is not set");
  from.size = size;
  std::memcpy(to, &from, size < sizeof(T) ? size : sizeof(T));
}

// Element `index` of a caller's array of structs, whose elements have the size that the first one says.
template <typename T>
T element_of(const T* array, size_t index, const T& defaults) {
  const T& first = given(array, "an array");
  return options_of(reinterpret_cast<const T*>(reinterpret_cast<const char*>(array) + index * first.size), defaults);
}

// Give text or ids to a caller's buffer if they fit; the count always.
template <typename T>
void give(const T* values, size_t count, T* buffer, size_t capacity, size_t* out) {
  given(out, "the count") = count;
  if (buffer != nullptr && count <= capacity && count != 0) std::memcpy(buffer, values, count * sizeof(T));
}

}  // namespace l4::c_api
