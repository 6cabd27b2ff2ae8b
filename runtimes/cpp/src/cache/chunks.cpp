#include "cache/chunks.hpp"

#include <algorithm>
#include <utility>

namespace l4 {
namespace {
constexpr std::int64_t without_end = std::int64_t{1} << 62;
}

Chunks::Chunks(std::int64_t size, std::vector<std::int64_t> starts)
    : size_(size == 0 ? without_end : size), starts_(std::move(starts)), held_(starts_) {
  for (std::int64_t& chunk : held_) chunk /= size_;
}

Chunks::Chunks(std::int64_t size, std::vector<std::int64_t> starts, std::vector<std::int64_t> held)
    : size_(size == 0 ? without_end : size), starts_(std::move(starts)), held_(std::move(held)) {}

std::int64_t Chunks::used(std::size_t row, std::int64_t end) const {
  if (held_[row] > end / size_) return 0;  // so that the product below stays within 64 bits
  const std::int64_t first = held_[row] * size_;
  return first < end && end - first <= size_ ? end - std::max(first, starts_[row]) : 0;
}

}  // namespace l4
