#include "trial.hpp"

#include <cstring>

#include "memory.hpp"

namespace l4::cpu {

bool same_bits(const Kernels& a, const Kernels& b) {
  constexpr std::int64_t count = 32, columns = 128;
  const Format format{kTileRows, columns, 4, 64, false};
  const Memory<std::uint8_t> tile(format.tile_bytes());
  for (std::int64_t i = 0; i < format.tile_bytes(); i++) {
    const bool scale = i % format.block_bytes() < kLineBytes;
    tile.get()[i] = static_cast<std::uint8_t>(scale ? 0x11 : 37 * i + i / 64);
  }
  float results[2][count * kTileRows];
  for (int k = 0; k < 2; k++) {
    const Kernels& kernels = k == 0 ? a : b;
    const OwnedRows rows(Activations::int8, count, columns, format.block);
    for (std::int64_t r = 0; r < count; r++) {
      float x[columns];
      for (std::int64_t i = 0; i < columns; i++) x[i] = static_cast<float>((r * 53 + i * 29) % 101 - 50);
      kernels.fill(rows.get(), r, x, 1.0f);
    }
    kernels.multiply(tile.get(), format, rows.get(), 0, count, results[k]);
  }
  return std::memcmp(results[0], results[1], sizeof results[0]) == 0;
}

}  // namespace l4::cpu
