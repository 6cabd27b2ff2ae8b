// Rows of activations as the kernels read them, in float32 or in int8 by block.
#pragma once

#include <cstdint>

namespace l4::cpu {

enum class Activations { float32, int8 };

// `count` rows of `columns` values, in panels of `panel` rows (1, 2, 4, 8 or 16). In a panel, slabs of 64 bytes along
// the columns follow each other (64 int8 codes or 16 floats); a slab has the 64 bytes of each row in turn, so that a
// kernel for several rows reads one stream, and an AMX tile is a piece of it. What no row fills may be anything.
//
// int8, by block of B columns, with a = max |x| (each step rounded to float32, nearest even):
//
//   a < 2^-119:       scale = 0,       codes = 0        (so that no scale is subnormal)
//   a infinite, NaN:  scale = NaN,     codes = 0        (every result of the row is NaN)
//   else              scale = a / 127, codes = round(x * (127 / a)), halves to even
//
// `scales` and `sums`, of the block's codes, are [panels][blocks][panel].
struct Rows {
  Activations kind = Activations::float32;
  std::int64_t count = 0, columns = 0, block = 32, panel = 1;
  unsigned char* values = nullptr;
  float* scales = nullptr;
  std::int32_t* sums = nullptr;

  [[gnu::always_inline]] std::int64_t slab_bytes() const { return 64 * panel; }
  [[gnu::always_inline]] std::int64_t slabs() const {
    return (columns * (kind == Activations::int8 ? 1 : 4) + 63) / 64;
  }
  [[gnu::always_inline]] std::int64_t panels() const { return (count + panel - 1) / panel; }
  [[gnu::always_inline]] std::int64_t blocks() const { return columns / block; }
  // Where row r starts: its slab k is `slab_bytes() * k` further.
  [[gnu::always_inline]] unsigned char* row(std::int64_t r) const {
    return values + r / panel * panel * 64 * slabs() + r % panel * 64;
  }
  // Where row r's scale or sum of its first block is: that of block b is `panel * b` further.
  [[gnu::always_inline]] std::int64_t first_block(std::int64_t r) const {
    return r / panel * panel * blocks() + r % panel;
  }
};

}  // namespace l4::cpu
