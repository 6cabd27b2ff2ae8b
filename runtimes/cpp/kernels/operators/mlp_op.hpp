// Operator MLP.
#pragma once

#include "gated.hpp"
#include "operators/custom_op.hpp"

namespace l4::cpu {

// MLP(x float [.., H], gate_up uint8 [T, tile bytes], down uint8 [T, tile bytes]) -> y float [.., H].
// Attributes: hidden, intermediate, activations ("int8", "float"); bits, block_size and zero_points, lists of one
// number for each input of tiles.
class MlpOp {
 public:
  static constexpr const char* name = "MLP";
  static constexpr std::array inputs = {kFloats, kBytes, kBytes};

  explicit MlpOp(const Node& node);
  void compute(const Call& call) const;

 private:
  const Kernels& kernels_;
  GatedFormat format_;
  GatedTiles tiles_;
  Activations activations_;
};

}  // namespace l4::cpu
