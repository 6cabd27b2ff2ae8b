// Gated units, the two matrices of an MLP or an expert: down(silu(gate(x)) * up(x)).
#pragma once

#include <vector>

#include "kernels.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "tile_work.hpp"

namespace l4::cpu {

// gate and up in one matrix [2 I, H], in the order of layout.hpp; down [H, I]; I is a multiple of 16.
struct GatedFormat {
  Format gate_up, down;
};

struct GatedTiles {
  const std::uint8_t *gate_up = nullptr, *down = nullptr;
};

struct WeightedRow {
  std::int64_t row;
  float score;  // what the unit's input is multiplied by
};

// Rows of x that go through the same unit, and what becomes of them on the way.
class GatedGroup {
 public:
  // std::bad_alloc where there is no memory.
  GatedGroup(const GatedFormat& format, GatedTiles tiles, std::vector<WeightedRow> rows, Activations activations);

  const GatedFormat& format() const { return *format_; }
  std::int64_t count() const { return static_cast<std::int64_t>(rows_.size()); }

  // The steps for x [.., H], each of them for a part: of the rows, of the tiles, of the rows, of the tiles.
  void fill_inputs(const Kernels& kernels, std::int64_t r, const float* x) const;
  void multiply_and_gate(const Kernels& kernels, TileRange tiles) const;
  void fill_products(const Kernels& kernels, std::int64_t r) const;
  void multiply_and_add(const Kernels& kernels, TileRange tiles, float* y) const;

 private:
  const GatedFormat* format_;
  GatedTiles tiles_;
  std::vector<WeightedRow> rows_;
  OwnedRows inputs_, products_;  // of the two matrices
  Memory<float> activated_;      // [count, I]
};

// y [rows, H] = 0 + the results of the groups in their order, of x [rows, H]. All groups have one H.
void run_groups(const Kernels& kernels, const std::vector<GatedGroup>& groups, const float* x, std::int64_t rows,
                float* y, Parallel& parallel);

// All rows [0, rows), with score 1.
std::vector<WeightedRow> every_row(std::int64_t rows);

}  // namespace l4::cpu
