// Arrays of caches in this machine's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cache/row_array.hpp"

namespace l4 {

// Bytes of an array [rows, heads, slots, width]. Raises std::bad_alloc where they are more than an address has bits
// for.
std::size_t array_bytes(std::int64_t rows, std::int64_t heads, std::int64_t slots, std::int64_t width_bytes);

// Zeros, which the system provides as they are touched. Raises std::bad_alloc.
std::shared_ptr<std::byte> zeros(std::size_t bytes);

// Copy the tokens of a row to `to`, the row's first slot in an array with `slots` slots for a head.
void copy_tokens(const RowArray& from, std::byte* to, std::int64_t slots, std::int64_t width_bytes);

}  // namespace l4
