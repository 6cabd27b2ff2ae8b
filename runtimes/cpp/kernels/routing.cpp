#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace l4::cpu {

std::vector<std::vector<WeightedRow>> choose_experts(const Kernels& kernels, const float* logits, std::int64_t rows,
                                                std::int64_t experts, std::int64_t k) {
  std::vector<std::vector<WeightedRow>> chosen(static_cast<std::size_t>(experts));
  std::vector<std::int64_t> order(static_cast<std::size_t>(experts));
  for (std::int64_t row = 0; row < rows; row++, logits += experts) {
    const bool broken = std::any_of(logits, logits + experts, [](float z) { return std::isnan(z); });
    std::iota(order.begin(), order.end(), 0);
    if (!broken) {
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](std::int64_t a, std::int64_t b) {
        return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
      });
    }
    for (std::int64_t i = 0; i < k; i++) {
      const std::int64_t expert = order[static_cast<std::size_t>(i)];
      const float score = broken ? std::numeric_limits<float>::quiet_NaN() : kernels.sigmoid(logits[expert]);
      chosen[static_cast<std::size_t>(expert)].push_back({row, score});
    }
  }
  return chosen;
}

}  // namespace l4::cpu
