#include "linear.hpp"

#include <algorithm>

#include "memory.hpp"
#include "tile_work.hpp"

namespace l4::cpu {

void linear(const Kernels& kernels, const Linear& linear, const std::uint8_t* tiles, const float* x, std::int64_t rows,
            const float* bias, float* y, Parallel& parallel) {
  const Format& format = linear.format;
  if (rows == 0) return;
  const OwnedRows inputs(linear.activations, rows, format.columns, format.block);
  parallel.run_rows(rows, format.columns, [&](std::int64_t r) {
    kernels.fill(inputs.get(), r, x + r * format.columns, 1.0f);
  });
  const Pieces pieces(format, rows);
  parallel.run(pieces.count(), [&](std::int64_t i) {
    multiply_tiles(kernels, tiles, format, inputs.get(), pieces[i],
                   [&](std::int64_t tile, std::int64_t first, std::int64_t count, const float* results) {
                     const std::int64_t column = tile * kTileRows, width = std::min(kTileRows, format.rows - column);
                     for (std::int64_t r = 0; r < count; r++, results += kTileRows) {
                       float* const out = y + (first + r) * format.rows + column;
                       for (std::int64_t i = 0; i < width; i++) {
                         out[i] = bias == nullptr ? results[i] : results[i] + bias[column + i];
                       }
                     }
                   });
  });
}

}  // namespace l4::cpu
