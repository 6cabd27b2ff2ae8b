// What an engine's caches are: one array for the keys and one for the values of every layer.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/manifest.hpp"

namespace l4 {

struct CacheSpec {
  std::vector<std::string> names;  // "{layer}.key", "{layer}.value"
  std::vector<bool> local;         // of each array, whether its layer keeps one chunk only
  std::int64_t heads = 0;          // of keys and values
  std::int64_t width = 0;  // elements that a head takes: its channels, or half as many bytes where two share one
  std::string dtype;               // of keys and values, as they are stored: NumPy's name, or bfloat16

  // The caches that a manifest describes.
  static CacheSpec of(const engine::Manifest& manifest);

  // The decoder's inputs and outputs.
  std::string past(std::size_t index) const { return "past_key_values." + names[index]; }
  std::string present(std::size_t index) const { return "present." + names[index]; }

  // Shape [heads, tokens, width] of a row's tokens in an array; `local_count` where it keeps one chunk.
  std::array<std::int64_t, 3> shape(std::size_t index, std::int64_t count, std::int64_t local_count) const {
    return {heads, local[index] ? local_count : count, width};
  }
};

}  // namespace l4
