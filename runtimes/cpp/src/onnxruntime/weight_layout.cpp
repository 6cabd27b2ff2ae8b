#include "onnxruntime/weight_layout.hpp"

#include <cstring>
#include <vector>

namespace l4 {
namespace {

constexpr std::int64_t tile_codes = 64;  // along K, which stay together
constexpr std::int64_t rows_at_a_time = 16;  // N is a multiple of this in ONNX Runtime's own packing
constexpr std::int64_t lanes = 4;

// 0x0000HHHH to the lower halves of 4 bytes.
std::uint32_t halves_opened(std::uint32_t word) {
  word = (word | word << 8) & 0x00FF00FFu;
  return (word | word << 4) & 0x0F0F0F0Fu;
}

// Codes 0, 2, .., 1, 3, .. of a word to 0, 1, 2, ..
std::uint32_t in_turn(std::uint32_t word, std::int64_t bits) {
  if (bits == 8) return (word & 0xFF0000FFu) | (word >> 8 & 0xFF00u) | (word << 8 & 0xFF0000u);
  return halves_opened(word & 0xFFFFu) | halves_opened(word >> 16) << 4;
}

// Rows that are packed together: pairs of codes, of `pair` bytes each, from [tiles, rows, groups, lanes, rows] to
// [rows, tiles, groups, rows, lanes].
void turn_pairs(const std::byte* from, std::byte* to, std::int64_t rows, std::int64_t tiles, std::int64_t groups,
                std::size_t pair) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t source = (tile * rows + row) * groups * lanes * rows;
      const std::int64_t target = (row * tiles + tile) * groups * rows * lanes;
      for (std::int64_t group = 0; group < groups; ++group) {
        for (std::int64_t down = 0; down < rows; ++down) {
          for (std::int64_t lane = 0; lane < lanes; ++lane) {
            const std::int64_t at = source + (group * lanes + lane) * rows + down;
            const std::int64_t out = target + (group * rows + down) * lanes + lane;
            std::memcpy(to + static_cast<std::size_t>(out) * pair, from + static_cast<std::size_t>(at) * pair, pair);
          }
        }
      }
    }
  }
}

}  // namespace

bool has_packed_order(std::int64_t n, std::int64_t k, std::int64_t bits) {
  return (bits == 4 || bits == 8) && n % rows_at_a_time == 0 && k % tile_codes == 0;
}

void unpack_codes(const std::byte* packed, std::byte* plain, std::int64_t n, std::int64_t k, std::int64_t bits) {
  const std::int64_t together = 16 / bits, bytes = together * k * bits / 8;
  std::vector<std::byte> words(static_cast<std::size_t>(bytes));
  for (std::int64_t first = 0; first < n; first += together) {
    for (std::int64_t at = 0; at < bytes; at += 4) {
      std::uint32_t word;  // of a little-endian file, on a little-endian machine
      std::memcpy(&word, packed + at, 4);
      word = in_turn(word, bits);
      std::memcpy(words.data() + at, &word, 4);
    }
    turn_pairs(words.data(), plain, together, k / tile_codes, tile_codes / (8 * together),
               static_cast<std::size_t>(bits / 4));
    packed += bytes;
    plain += bytes;
  }
}

}  // namespace l4
