// The order in which ONNX Runtime's CUDA kernels for experts read their codes, and the way back: see
// l4export/engine/weight_layout.py, which says where it comes from.
#pragma once

#include <cstddef>
#include <cstdint>

namespace l4 {

// Whether codes [n, k] of `bits` bits have this order.
bool has_packed_order(std::int64_t n, std::int64_t k, std::int64_t bits);

// From the kernel's order to plain codes, both [n, k * bits / 8] bytes; n and k as `has_packed_order` says.
void unpack_codes(const std::byte* packed, std::byte* plain, std::int64_t n, std::int64_t k, std::int64_t bits);

}  // namespace l4
