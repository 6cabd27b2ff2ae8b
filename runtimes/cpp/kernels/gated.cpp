#include "gated.hpp"

#include <algorithm>
#include <utility>

namespace l4::cpu {
namespace {

constexpr std::int64_t kUnits = kTileRows / 2;  // of a gated unit, in one tile

using Part = std::pair<const GatedGroup*, std::int64_t>;

// (group, i) for every i < size(group) of every group.
template <class Size>
std::vector<Part> parts_of(const std::vector<GatedGroup>& groups, Size&& size) {
  std::vector<Part> parts;
  for (const GatedGroup& group : groups)
    for (std::int64_t i = 0; i < size(group); i++) parts.emplace_back(&group, i);
  return parts;
}

Pieces gate_up_pieces(const GatedGroup& group) { return {group.format().gate_up, group.count()}; }

}  // namespace

GatedGroup::GatedGroup(const GatedFormat& format, GatedTiles tiles, std::vector<WeightedRow> rows,
                       Activations activations)
    : format_(&format),
      tiles_(tiles),
      rows_(std::move(rows)),
      inputs_(activations, count(), format.gate_up.columns, format.gate_up.block),
      products_(activations, count(), format.down.columns, format.down.block),
      activated_(count() * format.down.columns) {}

void GatedGroup::fill_inputs(const Kernels& kernels, std::int64_t r, const float* x) const {
  const WeightedRow& row = rows_[static_cast<std::size_t>(r)];
  kernels.fill(inputs_.get(), r, x + row.row * format_->gate_up.columns, row.score);
}

void GatedGroup::multiply_and_gate(const Kernels& kernels, TileRange tiles) const {
  const std::int64_t width = format_->down.columns;
  multiply_tiles(kernels, tiles_.gate_up, format_->gate_up, inputs_.get(), tiles,
                 [&](std::int64_t tile, std::int64_t first, std::int64_t count, const float* results) {
                   for (std::int64_t r = 0; r < count; r++, results += kTileRows) {
                     kernels.gate(results, results + kUnits, activated_.get() + (first + r) * width + tile * kUnits);
                   }
                 });
}

void GatedGroup::fill_products(const Kernels& kernels, std::int64_t r) const {
  kernels.fill(products_.get(), r, activated_.get() + r * format_->down.columns, 1.0f);
}

void GatedGroup::multiply_and_add(const Kernels& kernels, TileRange tiles, float* y) const {
  const std::int64_t hidden = format_->down.rows;
  multiply_tiles(kernels, tiles_.down, format_->down, products_.get(), tiles,
                 [&](std::int64_t tile, std::int64_t first, std::int64_t count, const float* results) {
                   const std::int64_t column = tile * kTileRows, width = std::min(kTileRows, hidden - column);
                   for (std::int64_t r = 0; r < count; r++, results += kTileRows) {
                     float* const out = y + rows_[static_cast<std::size_t>(first + r)].row * hidden + column;
                     for (std::int64_t i = 0; i < width; i++) out[i] += results[i];
                   }
                 });
}

void run_groups(const Kernels& kernels, const std::vector<GatedGroup>& groups, const float* x, std::int64_t rows,
                float* y, Parallel& parallel) {
  if (rows == 0) return;
  const Format& down = groups.front().format().down;
  const std::vector<Part> all_rows = parts_of(groups, [](const GatedGroup& group) { return group.count(); });
  const auto for_all_rows = [&](std::int64_t width, auto&& fill) {
    parallel.run_rows(static_cast<std::int64_t>(all_rows.size()), width, [&](std::int64_t i) {
      const auto& [group, r] = all_rows[static_cast<std::size_t>(i)];
      fill(*group, r);
    });
  };
  const std::vector<Part> tiles = parts_of(groups, [](const GatedGroup& g) { return gate_up_pieces(g).count(); });

  for_all_rows(down.rows, [&](const GatedGroup& group, std::int64_t r) { group.fill_inputs(kernels, r, x); });
  parallel.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t i) {
    const auto& [group, piece] = tiles[static_cast<std::size_t>(i)];
    group->multiply_and_gate(kernels, gate_up_pieces(*group)[piece]);
  });
  for_all_rows(down.columns, [&](const GatedGroup& group, std::int64_t r) { group.fill_products(kernels, r); });
  const Pieces columns(down, rows);  // all groups add to a column in one thread, so that sums have one order
  parallel.run(columns.count(), [&](std::int64_t i) {
    const TileRange range = columns[i];
    const std::int64_t begin = range.begin * kTileRows, end = std::min(range.end * kTileRows, down.rows);
    for (std::int64_t row = 0; row < rows; row++) {
      std::fill(y + row * down.rows + begin, y + row * down.rows + end, 0.0f);
    }
    for (const GatedGroup& group : groups) group.multiply_and_add(kernels, range, y);
  });
}

std::vector<WeightedRow> every_row(std::int64_t rows) {
  std::vector<WeightedRow> all;
  all.reserve(static_cast<std::size_t>(rows));
  for (std::int64_t row = 0; row < rows; row++) all.push_back({row, 1.0f});
  return all;
}

}  // namespace l4::cpu
