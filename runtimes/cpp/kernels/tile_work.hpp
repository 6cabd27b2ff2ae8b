// A matrix cut into pieces of tiles for threads, and many rows into stretches that stay in a core's cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.hpp"

namespace l4::cpu {

struct TileRange {
  std::int64_t begin, end;
};

// The tiles that a thread takes at once: some 128 kB of them; less where that would leave few pieces, but no less than
// takes longer than waking a thread.
class Pieces {
 public:
  Pieces(const Format& format, std::int64_t rows) : tiles_(format.tiles()) {
    const std::int64_t bytes = format.tile_bytes(), work = bytes * std::clamp<std::int64_t>(rows, 1, 16);
    const std::int64_t most = kMostBytes / bytes, least = kLeastWork / work, for_balance = tiles_ / 16;
    each_ = std::max<std::int64_t>(1, std::min(most, std::max(least, for_balance)));
  }
  std::int64_t count() const { return (tiles_ + each_ - 1) / each_; }
  TileRange operator[](std::int64_t piece) const { return {piece * each_, std::min((piece + 1) * each_, tiles_)}; }

 private:
  static constexpr std::int64_t kMostBytes = 128 << 10, kLeastWork = 32 << 10;
  std::int64_t tiles_, each_;
};

// Multiplies all rows by some tiles of a matrix: use(tile, first row, count, results [count][32]) for every part of
// them.
template <class Use>
void multiply_tiles(const Kernels& kernels, const std::uint8_t* tiles, const Format& format, const Rows& rows,
                    TileRange range, Use&& use) {
  constexpr std::int64_t stretch = 128;  // rows; a multiple of every panel
  alignas(64) float results[stretch * kTileRows];
  for (std::int64_t first = 0; first < rows.count; first += stretch) {
    const std::int64_t count = std::min(stretch, rows.count - first);
    for (std::int64_t tile = range.begin; tile < range.end; tile++) {
      kernels.multiply(tiles + tile * format.tile_bytes(), format, rows, first, count, results);
      use(tile, first, count, results);
    }
  }
}

}  // namespace l4::cpu
