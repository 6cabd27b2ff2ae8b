// The kernels: one table of functions for each instruction set. All tables give the same bits.
#pragma once

#include <cstdint>

#include "layout.hpp"
#include "rows.hpp"

namespace l4::cpu {

// Results of a tile: [rows][32], float32.
using TileResults = float*;

struct Kernels {
  const char* name;

  // Row `r` of `rows` becomes factor * x (rounded to float32), x [columns]; as it is or as int8 codes.
  void (*fill)(const Rows& rows, std::int64_t r, const float* x, float factor);

  // Rows [first, first + count) times the 32 rows of a tile:
  //
  //   int8:   y = fma(float(sum over the block of (code - zero point) * q), scale * row's scale, y), block by block
  //   float:  y = fma(scale, (p0 + p1) + (p2 + p3), y), block by block, where p_j is the sum over the block's columns
  //           k = 4 g + j in order, p_j = fma(float(code - zero point), x_k, p_j)
  //
  // All sums start at 0; the int8 sum and its float are exact, the product of the two scales is rounded.
  // `first` is a multiple of the rows' panel.
  void (*multiply)(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                   std::int64_t count, TileResults y);

  // The gated unit: h[i] = gate[i] / (1 + exp(-gate[i])) * up[i] for i < 16; exp as in kernel/exponential.hpp.
  void (*gate)(const float* gate, const float* up, float* h);

  // 1 / (1 + exp(-x)); NaN of NaN.
  float (*sigmoid)(float x);
};

}  // namespace l4::cpu
