// How weights lie in memory: one layout, which the kernels of all instruction sets read front to back.
//
// A matrix [N, K] of b bits, b = 4 or 8, in blocks of B along K: rows are padded to whole tiles of 32 with scale 0.
// Tiles lie one after the other; in a tile, its K / B blocks in order. A block is, all little-endian,
//
//   64 bytes        32 scales, float16, of the tile's rows 0..31; of any sign
//   64 bytes        32 zero points, uint16, below 2^b; only where the matrix has them: else all are 2^(b-1)
//   B / 4 groups    the codes of columns k = 4 g .. 4 g + 3, g = 0, 1, ..
//
// A group of 4-bit codes has 64 bytes: byte 4 r + j holds those of column 4 g + j, of row r in the low nibble, of row
// 16 + r in the high one. A group of 8-bit codes has 128 bytes: byte 4 r + j is that of row r and column 4 g + j.
//
// The weight is (code - zero point) * scale. 64 bytes are thus 16 rows x 4 columns: one operand of the dot products of
// 4 bytes that AVX-512 VNNI has (and halves or quarters of it, of AVX2 and NEON), and a row of an AMX tile as it
// stands. Rows are lanes, so no sum ever goes across lanes. Everything starts at a multiple of 64 bytes.
//
// Experts [E, N, K] lie one after the other. Of a gated unit, rows 0..15 of tile t are rows 16 t .. 16 t + 15 of the
// gate, rows 16..31 the same of "up", so that a tile has what the activation needs.
// l4export/engine/cpu_weight_layout.py packs and unpacks.
#pragma once

#include <cstdint>

namespace l4::cpu {

constexpr std::int64_t kTileRows = 32;
constexpr std::int64_t kLineBytes = 64;

// The shape and coding of one matrix. Members are inlined always: files are compiled for several instruction sets, and
// the linker must not take one's copy for all.
struct Format {
  std::int64_t rows = 0;     // N
  std::int64_t columns = 0;  // K, a multiple of `block`
  std::int64_t bits = 4;     // 4 or 8
  std::int64_t block = 32;   // 16, 32, 64 or 128
  bool zero_points = false;

  [[gnu::always_inline]] std::int64_t header_bytes() const { return zero_points ? 2 * kLineBytes : kLineBytes; }
  [[gnu::always_inline]] std::int64_t group_bytes() const { return bits * 16; }
  [[gnu::always_inline]] std::int64_t block_bytes() const { return header_bytes() + block / 4 * group_bytes(); }
  [[gnu::always_inline]] std::int64_t blocks() const { return columns / block; }
  [[gnu::always_inline]] std::int64_t tile_bytes() const { return blocks() * block_bytes(); }
  [[gnu::always_inline]] std::int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  [[gnu::always_inline]] std::int64_t bytes() const { return tiles() * tile_bytes(); }
};

}  // namespace l4::cpu
