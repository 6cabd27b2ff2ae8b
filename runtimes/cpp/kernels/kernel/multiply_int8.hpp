// Rows of int8 activations times a tile. To be included by files of isa/ only.
#pragma once

#include "kernel/prefetch.hpp"
#include "kernels.hpp"

namespace l4::cpu {

// A group of codes as vectors of bytes, 4 columns of one row in each lane: vector v has rows lanes * v and on.
template <class V, int bits>
[[gnu::always_inline]] static inline void load_codes(const std::uint8_t* group, typename V::I (&codes)[32 / V::lanes]) {
  constexpr int vectors = 32 / V::lanes;
  if constexpr (bits == 4) {
    for (int v = 0; v < vectors / 2; v++) {
      const auto both = V::load_bytes(group + 4 * V::lanes * v);
      codes[v] = V::low_nibbles(both);
      codes[v + vectors / 2] = V::high_nibbles(both);  // times 2^V::high_shift
    }
  } else {
    for (int v = 0; v < vectors; v++) codes[v] = V::load_bytes(group + 4 * V::lanes * v);
  }
}

// Integer sums of one block, with 4-bit codes of rows 16.. times 2^high_shift; chains of several sums hide the latency.
template <class V, int bits, int count>
struct BlockSums {
  static constexpr int vectors = 32 / V::lanes;
  static constexpr int chains = count * vectors * 2 > V::accumulators   ? 1
                                : count * vectors * 4 > V::accumulators ? 2
                                                                        : 4;
  typename V::I sums[count][chains][vectors];

  [[gnu::always_inline]] void clear() {
    for (int m = 0; m < count; m++)
      for (int c = 0; c < chains; c++)
        for (int v = 0; v < vectors; v++) sums[m][c][v] = V::zero_int();
  }

  // 16 columns, whose codes start at `group`; those of row m at `row` + 64 m.
  [[gnu::always_inline]] void add(const std::uint8_t* group, const unsigned char* row) {
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++, group += 16 * bits) {
      typename V::I codes[vectors];
      load_codes<V, bits>(group, codes);
      for (int line = 0; line < bits / 4; line++) __builtin_prefetch(group + kPrefetchBytes + 64 * line);
#pragma GCC unroll 8
      for (int m = 0; m < count; m++) {
        const auto quad = V::quad(row + 64 * m + 4 * g);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
          auto& sum = sums[m][g % chains][v];
          sum = bits == 4 ? V::dot_nibbles(sum, codes[v], quad) : V::dot_bytes(sum, codes[v], quad);
        }
      }
    }
  }

  [[gnu::always_inline]] typename V::I total(int m, int v) const {
    auto sum = sums[m][0][v];
    for (int c = 1; c < chains; c++) sum = V::add(sum, sums[m][c][v]);
    return bits == 4 && v >= vectors / 2 ? V::template shift_right<V::high_shift>(sum) : sum;
  }
};

template <class V, int bits, int count>
static void multiply_int8_rows(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                               TileResults y) {
  constexpr int vectors = 32 / V::lanes;
  constexpr int bias = bits == 8 ? V::byte_bias : 0;  // dot_bytes takes codes less that
  const unsigned char* const row = rows.row(first);
  const std::int64_t slab = rows.slab_bytes(), header = format.header_bytes(), block_bytes = format.block_bytes();
  std::int64_t at = rows.first_block(first);
  typename V::F results[count][vectors];
  for (int m = 0; m < count; m++)
    for (int v = 0; v < vectors; v++) results[m][v] = V::set(0.0f);

  for (std::int64_t k = 0; k < format.columns; tile += block_bytes, at += rows.panel) {
    BlockSums<V, bits, count> block;
    block.clear();
    for (std::int64_t line = 0; line < header; line += kLineBytes) __builtin_prefetch(tile + kPrefetchBytes + line);
    const std::uint8_t* group = tile + header;
    for (const std::int64_t end = k + format.block; k < end; k += 16, group += 64 * bits) {
      block.add(group, row + k / 64 * slab + k % 64);
    }
    for (int v = 0; v < vectors; v++) {
      const auto scales = V::load_half(tile + 2 * V::lanes * v);
      auto zero = V::set_int((1 << (bits - 1)) - bias);
      if (format.zero_points) zero = V::sub(V::load_uint16(tile + kLineBytes + 2 * V::lanes * v), V::set_int(bias));
#pragma GCC unroll 8
      for (int m = 0; m < count; m++) {
        const auto dot = V::sub(block.total(m, v), V::mul(zero, V::set_int(rows.sums[at + m])));
        const auto scale = V::mul(scales, V::set(rows.scales[at + m]));
        results[m][v] = V::fma(V::to_float(dot), scale, results[m][v]);
      }
    }
  }
  for (int m = 0; m < count; m++)
    for (int v = 0; v < vectors; v++) V::store(y + kTileRows * m + V::lanes * v, results[m][v]);
}

}  // namespace l4::cpu
