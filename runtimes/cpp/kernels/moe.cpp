#include "moe.hpp"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "routing.hpp"
#include "tile_work.hpp"

namespace l4::cpu {
namespace {

constexpr std::int64_t kUnits = kTileRows / 2;  // of a gated unit, in one tile

// Rows that go through the same weights.
struct Group {
  const GatedUnit* unit;
  GatedTiles tiles;
  std::vector<Choice> choices;
  OwnedRows inputs, products;  // of the two matrices
  Memory<float> activated;     // [choices, I]

  Group(const Moe& moe, const GatedUnit& unit, GatedTiles tiles, std::vector<Choice> choices)
      : unit(&unit),
        tiles(tiles),
        choices(std::move(choices)),
        inputs(moe.activations, count(), moe.hidden, unit.gate_up.block),
        products(moe.activations, count(), moe.intermediate, unit.down.block),
        activated(count() * moe.intermediate) {}
  std::int64_t count() const { return static_cast<std::int64_t>(choices.size()); }
};

std::vector<Group> make_groups(const Kernels& kernels, const Moe& moe, const GatedTiles& experts,
                               const GatedTiles& shared, const float* logits, std::int64_t rows) {
  std::vector<Group> groups;
  if (shared.gate_up != nullptr) {
    std::vector<Choice> all;
    for (std::int64_t row = 0; row < rows; row++) all.push_back({row, 1.0f});
    groups.emplace_back(moe, moe.shared, shared, std::move(all));
  }
  auto chosen = choose_experts(kernels, logits, rows, moe.experts, moe.k);
  for (std::int64_t e = 0; e < moe.experts; e++) {
    auto& choices = chosen[static_cast<std::size_t>(e)];
    if (choices.empty()) continue;
    const GatedTiles tiles{experts.gate_up + e * moe.expert.gate_up.bytes(), experts.down + e * moe.expert.down.bytes()};
    groups.emplace_back(moe, moe.expert, tiles, std::move(choices));
  }
  return groups;
}

// work(group, i) for every i < size(group) of every group.
template <class Size, class Work>
void for_each_of(const std::vector<Group>& groups, Parallel& parallel, Size&& size, Work&& work) {
  std::vector<std::pair<const Group*, std::int64_t>> all;
  for (const Group& group : groups)
    for (std::int64_t i = 0; i < size(group); i++) all.emplace_back(&group, i);
  parallel.run(static_cast<std::int64_t>(all.size()), [&](std::int64_t i) {
    const auto& [group, part] = all[static_cast<std::size_t>(i)];
    work(*group, part);
  });
}

void multiply_and_gate(const Kernels& kernels, const Group& group, TileRange range) {
  const std::int64_t width = group.unit->down.columns;
  multiply_tiles(kernels, group.tiles.gate_up, group.unit->gate_up, group.inputs.get(), range,
                 [&](std::int64_t tile, std::int64_t first, std::int64_t count, const float* results) {
                   for (std::int64_t r = 0; r < count; r++, results += kTileRows) {
                     kernels.gate(results, results + kUnits, group.activated.get() + (first + r) * width + tile * kUnits);
                   }
                 });
}

void multiply_and_add(const Kernels& kernels, const Group& group, TileRange range, float* y) {
  const std::int64_t hidden = group.unit->down.rows;
  multiply_tiles(kernels, group.tiles.down, group.unit->down, group.products.get(), range,
                 [&](std::int64_t tile, std::int64_t first, std::int64_t count, const float* results) {
                   const std::int64_t column = tile * kTileRows, width = std::min(kTileRows, hidden - column);
                   for (std::int64_t r = 0; r < count; r++, results += kTileRows) {
                     const Choice& choice = group.choices[static_cast<std::size_t>(first + r)];
                     float* const out = y + choice.row * hidden + column;
                     for (std::int64_t i = 0; i < width; i++) out[i] += results[i];
                   }
                 });
}

}  // namespace

void moe(const Kernels& kernels, const Moe& moe, const GatedTiles& experts, const GatedTiles& shared, const float* x,
         const float* logits, std::int64_t rows, float* y, Parallel& parallel) {
  const std::vector<Group> groups = make_groups(kernels, moe, experts, shared, logits, rows);
  const auto size = [](const Group& group) { return group.count(); };
  for_each_of(groups, parallel, size, [&](const Group& group, std::int64_t r) {
    const Choice& choice = group.choices[static_cast<std::size_t>(r)];
    kernels.fill(group.inputs.get(), r, x + choice.row * moe.hidden, choice.score);
  });
  const auto gate_up_pieces = [](const Group& group) { return Pieces(group.unit->gate_up).count(); };
  for_each_of(groups, parallel, gate_up_pieces, [&](const Group& group, std::int64_t i) {
    multiply_and_gate(kernels, group, Pieces(group.unit->gate_up)[i]);
  });
  for_each_of(groups, parallel, size, [&](const Group& group, std::int64_t r) {
    kernels.fill(group.products.get(), r, group.activated.get() + r * moe.intermediate, 1.0f);
  });
  const Pieces columns(moe.expert.down);  // all groups add to a column in one thread, so that sums have one order
  parallel.run(columns.count(), [&](std::int64_t i) {
    const std::int64_t begin = columns[i].begin * kTileRows, end = std::min(columns[i].end * kTileRows, moe.hidden);
    for (std::int64_t row = 0; row < rows; row++) std::fill(y + row * moe.hidden + begin, y + row * moe.hidden + end, 0.0f);
    for (const Group& group : groups) multiply_and_add(kernels, group, columns[i], y);
  });
}

}  // namespace l4::cpu
