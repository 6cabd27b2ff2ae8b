// Operator Linear.
#pragma once

#include "linear.hpp"
#include "operators/custom_op.hpp"

namespace l4::cpu {

// Linear(x float [.., K], tiles uint8 [T, tile bytes], bias float [N] (optional)) -> y float [.., N].
// Attributes: N, K, bits (4, 8), block_size (16, 32, 64, 128), zero_points (0, 1), activations ("int8", "float").
class LinearOp {
 public:
  static constexpr const char* name = "Linear";
  static constexpr std::array inputs = {kFloats, kBytes, optional(kFloats)};

  explicit LinearOp(const Node& node);
  void compute(const Call& call) const;

 private:
  const Kernels& kernels_;
  Linear linear_;
  const std::uint8_t* tiles_;
};

}  // namespace l4::cpu
