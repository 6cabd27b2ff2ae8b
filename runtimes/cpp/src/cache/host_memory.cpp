#include "cache/host_memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

namespace l4 {

std::size_t array_bytes(std::int64_t rows, std::int64_t heads, std::int64_t slots, std::int64_t width_bytes) {
  std::size_t bytes = 1;
  for (const std::int64_t size : {rows, heads, slots, width_bytes}) {
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes) || bytes > PTRDIFF_MAX) {
      throw std::bad_alloc();
    }
  }
  return bytes;
}

std::shared_ptr<std::byte> zeros(std::size_t bytes) {
  auto* memory = static_cast<std::byte*>(std::calloc(bytes != 0 ? bytes : 1, 1));
  if (memory == nullptr) throw std::bad_alloc();
  return {memory, [](std::byte* freed) { std::free(freed); }};
}

void copy_tokens(const RowArray& from, std::byte* to, std::int64_t slots, std::int64_t width_bytes) {
  for (std::int64_t head = 0; head < from.heads && from.tokens != 0; ++head) {  // without tokens there is no memory
    // the same bytes where a row becomes its own copy
    std::memmove(to + head * slots * width_bytes, from.data + head * from.head_stride_bytes,
                 static_cast<std::size_t>(from.tokens * width_bytes));
  }
}

}  // namespace l4
