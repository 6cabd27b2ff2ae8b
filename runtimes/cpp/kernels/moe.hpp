// Llama 4's mixture of experts.
#pragma once

#include "gated.hpp"

namespace l4::cpu {

struct Moe {
  std::int64_t experts = 0, k = 0;
  GatedFormat expert, shared;
  Activations activations = Activations::int8;
};

// x [rows, H], router logits [rows, experts] -> y [rows, H]: 0 + shared(x) + the sum of expert_e(sigmoid(logit_e) x)
// over the chosen experts, in order of their index. `experts` has all experts' tiles; `shared` none where there is no
// shared expert. std::bad_alloc where there is no memory.
void moe(const Kernels& kernels, const Moe& moe, const GatedTiles& experts, const GatedTiles& shared, const float* x,
         const float* logits, std::int64_t rows, float* y, Parallel& parallel);

}  // namespace l4::cpu
