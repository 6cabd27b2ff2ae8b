// Sums in the order in which NumPy adds, so that both runtimes get the same to the last bit.
#pragma once

#include <cstddef>

namespace l4::sampling {

// The sum of a contiguous array as `numpy.sum` computes it: halves are summed for themselves, blocks of up to 128 in
// eight partial sums.
inline double pairwise_sum(const double* values, std::size_t count) {
  constexpr std::size_t kBlock = 128, kLanes = 8;
  if (count > kBlock) {
    const std::size_t half = count / 2 - count / 2 % kLanes;
    return pairwise_sum(values, half) + pairwise_sum(values + half, count - half);
  }
  double sum = 0;
  std::size_t at = 0;
  if (count >= kLanes) {
    double lanes[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = values[lane];
    for (at = kLanes; at + kLanes <= count; at += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[at + lane];
    }
    sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  }
  for (; at < count; ++at) sum += values[at];
  return sum;
}

}  // namespace l4::sampling
