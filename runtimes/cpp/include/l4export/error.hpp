// What every call has: its errors, and owners of handles.
#ifndef L4EXPORT_ERROR_HPP
#define L4EXPORT_ERROR_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "l4export.h"

namespace l4export {

// What went wrong: one line, and the status of the call.
class Error : public std::runtime_error {
 public:
  Error(l4_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  l4_status status() const noexcept { return status_; }

 private:
  l4_status status_;
};

// Throws Error unless a call of the C ABI has succeeded.
inline void check(l4_status status) {
  if (status != L4_OK) throw Error(status, l4_last_error());
}

namespace detail {

template <auto Close>
struct Closer {
  template <typename T>
  void operator()(T* handle) const noexcept {
    Close(handle);
  }
};

template <typename T, auto Close>
using Handle = std::unique_ptr<T, Closer<Close>>;

// What a call gives into a buffer: `call(buffer, capacity, &count)`. `guess` elements are tried first.
template <typename Container, typename Call>
Container collected(std::size_t guess, Call call) {
  Container values(guess, {});
  std::size_t count = 0;
  check(call(values.data(), values.size(), &count));
  if (count > values.size()) {
    values.resize(count);
    check(call(values.data(), values.size(), &count));
  }
  values.resize(count);
  return values;
}

}  // namespace detail

using Ids = std::vector<std::int32_t>;

}  // namespace l4export

#endif
