#include "moe.hpp"

#include <utility>

#include "routing.hpp"

namespace l4::cpu {

void moe(const Kernels& kernels, const Moe& moe, const GatedTiles& experts, const GatedTiles& shared, const float* x,
         const float* logits, std::int64_t rows, float* y, Parallel& parallel) {
  std::vector<GatedGroup> groups;
  if (shared.gate_up != nullptr) groups.emplace_back(moe.shared, shared, every_row(rows), moe.activations);
  auto chosen = choose_experts(kernels, logits, rows, moe.experts, moe.k);
  const GatedFormat& expert = moe.expert;
  for (std::int64_t e = 0; e < moe.experts; e++) {
    auto& of_expert = chosen[static_cast<std::size_t>(e)];
    if (of_expert.empty()) continue;
    const GatedTiles tiles{experts.gate_up + e * expert.gate_up.bytes(), experts.down + e * expert.down.bytes()};
    groups.emplace_back(expert, tiles, std::move(of_expert), moe.activations);
  }
  run_groups(kernels, groups, x, rows, y, parallel);
}

}  // namespace l4::cpu
