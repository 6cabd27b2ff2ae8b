// Many rows of float activations times a tile: the sums of multiply_float.hpp over weights that are decoded once for
// all rows, block by block. To be included by files of isa/ only.
#pragma once

#include "kernel/prefetch.hpp"
#include "kernels.hpp"

namespace l4::cpu {

// Code less zero point of a block: [columns][32 rows of the tile].
struct alignas(64) DecodedBlock {
  float weights[128][32];
};

template <class V, int bits, int j>
[[gnu::always_inline]] static inline void decode_column(typename V::I codes, const typename V::F (&zeros)[2],
                                                        float* column) {
  V::store(column, V::sub(V::template field<8 * j, bits>(codes), zeros[0]));
  if constexpr (bits == 4) V::store(column + 16, V::sub(V::template field<8 * j + 4, bits>(codes), zeros[1]));
}

template <class V, int bits>
static void decode_block(const std::uint8_t* block, const Format& format, DecodedBlock& decoded) {
  for (int lane = 0; lane < (bits == 4 ? 16 : 32); lane += V::lanes) {
    typename V::F zeros[2];
    for (int half = 0; half < 2; half++) {
      zeros[half] = V::set(static_cast<float>(1 << (bits - 1)));
      const int place = (2 * lane + 32 * half) % 64;
      if (format.zero_points) zeros[half] = V::to_float(V::load_uint16(block + kLineBytes + place));
    }
    const std::uint8_t* group = block + format.header_bytes() + 4 * lane;
    for (std::int64_t k = 0; k < format.block; k += 4, group += 16 * bits) {
      __builtin_prefetch(group + kPrefetchBytes);
      const auto codes = V::load_bytes(group);
      decode_column<V, bits, 0>(codes, zeros, decoded.weights[k] + lane);
      decode_column<V, bits, 1>(codes, zeros, decoded.weights[k + 1] + lane);
      decode_column<V, bits, 2>(codes, zeros, decoded.weights[k + 2] + lane);
      decode_column<V, bits, 3>(codes, zeros, decoded.weights[k + 3] + lane);
    }
  }
}

// `count` rows of one panel, from column `k` on: y [count][32] grows by one block.
template <class V, int count>
static void add_decoded_block(const DecodedBlock& decoded, const std::uint8_t* scales, const Rows& rows,
                              std::int64_t first, std::int64_t k, TileResults y) {
  constexpr int vectors = V::wide_passes ? 2 : 1;
  const auto* const x = reinterpret_cast<const float*>(rows.row(first));
  const std::int64_t slab = rows.slab_bytes() / 4;
  for (int lane = 0; lane < 32; lane += vectors * V::lanes) {
    typename V::F sums[count][vectors][4];
    for (int m = 0; m < count; m++)
      for (int v = 0; v < vectors; v++)
        for (int j = 0; j < 4; j++) sums[m][v][j] = V::set(0.0f);
    for (std::int64_t i = 0; i < rows.block; i += 4) {
      const float* const columns = x + (k + i) / 16 * slab + (k + i) % 16;
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        typename V::F weights[vectors];
        for (int v = 0; v < vectors; v++) weights[v] = V::keep(V::load(decoded.weights[i + j] + lane + V::lanes * v));
#pragma GCC unroll 3
        for (int m = 0; m < count; m++) {
          const auto value = V::set(columns[16 * m + j]);
          for (int v = 0; v < vectors; v++) sums[m][v][j] = V::fma(weights[v], value, sums[m][v][j]);
        }
      }
    }
    for (int v = 0; v < vectors; v++) {
      const int at = lane + V::lanes * v;
      const auto scale = V::load_half(scales + 2 * at);
      for (int m = 0; m < count; m++) {
        const auto& p = sums[m][v];
        const auto sum = V::add(V::add(p[0], p[1]), V::add(p[2], p[3]));
        V::store(y + kTileRows * m + at, V::fma(scale, sum, V::load(y + kTileRows * m + at)));
      }
    }
  }
}

template <class V, int bits>
static void multiply_decoded(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                             std::int64_t count, TileResults y) {
  DecodedBlock decoded;
  for (std::int64_t i = 0; i < kTileRows * count; i++) y[i] = 0;
  for (std::int64_t k = 0; k < format.columns; k += format.block, tile += format.block_bytes()) {
    decode_block<V, bits>(tile, format, decoded);
    for (std::int64_t m = 0; m < count;) {
      const std::int64_t in_panel = rows.panel - (first + m) % rows.panel;
      const std::int64_t left = count - m < in_panel ? count - m : in_panel;
      const std::int64_t passes = (left + 2) / 3, now = (left + passes - 1) / passes;
      const auto add = now == 3   ? add_decoded_block<V, 3>
                       : now == 2 ? add_decoded_block<V, 2>
                                  : add_decoded_block<V, 1>;
      add(decoded, tile, rows, first + m, k, y + kTileRows * m);
      m += now;
    }
  }
}

}  // namespace l4::cpu
