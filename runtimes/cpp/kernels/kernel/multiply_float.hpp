// Rows of float activations times a tile. To be included by files of isa/ only.
#pragma once

#include "kernel/prefetch.hpp"
#include "kernels.hpp"

namespace l4::cpu {

// The sums of one block for V::lanes rows, and with 4-bit codes for as many of the upper half. Column k adds to sum
// k % 4.
template <class V, int bits, int count>
struct FloatSums {
  static constexpr int halves = bits == 4 ? 2 : 1;
  typename V::F sums[count][halves][4];

  [[gnu::always_inline]] void clear() {
    for (int m = 0; m < count; m++)
      for (int h = 0; h < halves; h++)
        for (int j = 0; j < 4; j++) sums[m][h][j] = V::set(0.0f);
  }

  template <int j>
  [[gnu::always_inline]] void add_column(typename V::I codes, const typename V::F (&zeros)[halves], const float* x,
                                         std::int64_t stride) {
    typename V::F weights[halves];
    weights[0] = V::sub(V::template field<8 * j, bits>(codes), zeros[0]);
    if constexpr (bits == 4) weights[1] = V::sub(V::template field<8 * j + 4, bits>(codes), zeros[1]);
    for (int m = 0; m < count; m++) {
      const auto value = V::set(x[stride * m + j]);
      for (int h = 0; h < halves; h++) sums[m][h][j] = V::fma(weights[h], value, sums[m][h][j]);
    }
  }

  [[gnu::always_inline]] typename V::F total(int m, int h) const {
    const auto& p = sums[m][h];
    return V::add(V::add(p[0], p[1]), V::add(p[2], p[3]));
  }
};

template <class V, int bits, int count>
static void multiply_float_rows(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                                TileResults y) {
  constexpr int halves = bits == 4 ? 2 : 1, per_half = 32 / halves;
  const auto* const x = reinterpret_cast<const float*>(rows.row(first));
  const std::int64_t slab = rows.slab_bytes() / 4, header = format.header_bytes();
  for (int i = 0; i < 32 * count; i++) y[i] = 0;
  for (std::int64_t k = 0; k < format.columns; k += format.block, tile += format.block_bytes()) {
    for (int lane = 0; lane < per_half; lane += V::lanes) {
      typename V::F zeros[halves];
      for (int h = 0; h < halves; h++) {
        zeros[h] = V::set(static_cast<float>(1 << (bits - 1)));
        if (format.zero_points) zeros[h] = V::to_float(V::load_uint16(tile + kLineBytes + 2 * (lane + per_half * h)));
      }
      FloatSums<V, bits, count> block;
      block.clear();
      const std::uint8_t* group = tile + header + 4 * lane;
      for (std::int64_t i = k; i < k + format.block; i += 4, group += 16 * bits) {
        __builtin_prefetch(group + kPrefetchBytes);
        const auto codes = V::load_bytes(group);
        const float* const column = x + i / 16 * slab + i % 16;
        block.template add_column<0>(codes, zeros, column, 16);
        block.template add_column<1>(codes, zeros, column, 16);
        block.template add_column<2>(codes, zeros, column, 16);
        block.template add_column<3>(codes, zeros, column, 16);
      }
      for (int h = 0; h < halves; h++) {
        const auto scales = V::load_half(tile + 2 * (lane + per_half * h));
        for (int m = 0; m < count; m++) {
          float* const out = y + kTileRows * m + lane + per_half * h;
          V::store(out, V::fma(scales, block.total(m, h), V::load(out)));
        }
      }
    }
  }
}

}  // namespace l4::cpu
