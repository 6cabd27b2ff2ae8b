// Which experts a token goes to.
#pragma once

#include <cstdint>
#include <vector>

#include "gated.hpp"

namespace l4::cpu {


// Rows of each expert, in order, from router logits [rows, experts]: a row goes to the k experts with the largest
// logits, of equal ones to the first; its score is sigmoid(logit). A row with a NaN among its logits has NaN as scores,
// and goes to the first k.
std::vector<std::vector<WeightedRow>> choose_experts(const Kernels& kernels, const float* logits, std::int64_t rows,
                                                std::int64_t experts, std::int64_t k);

}  // namespace l4::cpu
