// Operator MoE.
#pragma once

#include "moe.hpp"
#include "operators/custom_op.hpp"

namespace l4::cpu {

// MoE(x float [.., H], router_logits float [.., E], gate_up uint8 [E, T, tile bytes], down uint8 [E, T, tile bytes],
//     shared_gate_up uint8 [T, tile bytes] (optional), shared_down uint8 [T, tile bytes] (optional))
// -> y float [.., H].
// Attributes: hidden, intermediate, experts, k, activations ("int8", "float"); bits, block_size and zero_points, lists
// of one number for each input of tiles.
class MoeOp {
 public:
  static constexpr const char* name = "MoE";
  static constexpr std::array inputs = {kFloats, kFloats, kBytes, kBytes, optional(kBytes), optional(kBytes)};

  explicit MoeOp(const Node& node);
  void compute(const Call& call) const;

 private:
  const Kernels& kernels_;
  Moe moe_;
  GatedTiles experts_, shared_;
};

}  // namespace l4::cpu
