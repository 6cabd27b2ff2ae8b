#include "cache/in_place_cache.hpp"

#include <algorithm>
#include <utility>

#include "cache/host_memory.hpp"

namespace l4 {

InPlaceCache::InPlaceCache(std::shared_ptr<const InferenceSession> session, const engine::Manifest& manifest,
                           std::int64_t rows, std::int64_t capacity)
    : session_(std::move(session)), spec_(CacheSpec::of(manifest)), type_(element_type(spec_.dtype)), rows_(rows),
      vocab_(manifest.model.vocab_size), width_bytes_(spec_.width * type_.bytes) {
  for (std::size_t index = 0; index < spec_.names.size(); ++index) {
    slots_.push_back(std::min(capacity, manifest.kv_layers[index / 2].capacity.value_or(capacity)));
  }
}

std::uint64_t InPlaceCache::bytes() const {
  std::uint64_t bytes = 0;
  for (const std::int64_t slots : slots_) bytes += array_bytes(rows_, spec_.heads, slots, width_bytes_);
  return bytes;
}

std::size_t InPlaceCache::row_bytes(std::size_t array) const {
  return static_cast<std::size_t>(spec_.heads * slots_[array] * width_bytes_);
}

}  // namespace l4
