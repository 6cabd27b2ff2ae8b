#include "operators/moe_op.hpp"

#include "operators/gated_node.hpp"

namespace l4::cpu {

MoeOp::MoeOp(const Node& node) : kernels_(session_kernels()) {
  moe_.experts = node.number("experts", 1);
  moe_.k = node.number("k", 1);
  moe_.activations = node.activations();
  if (moe_.k > moe_.experts) {
    node.refuse("k is " + std::to_string(moe_.k) + " of " + std::to_string(moe_.experts) + " experts");
  }
  const std::size_t inputs = node.inputs();
  if (inputs != 4 && inputs != 6) node.refuse("it has " + std::to_string(inputs) + " inputs, not 4 or 6");
  const GatedNode gated(node, inputs - 2);
  moe_.expert = gated.format(0);
  experts_.gate_up = node.tiles(2, "gate_up", moe_.expert.gate_up, moe_.experts);
  experts_.down = node.tiles(3, "down", moe_.expert.down, moe_.experts);
  if (inputs == 4) return;
  moe_.shared = gated.format(2);
  shared_.gate_up = node.tiles(4, "shared_gate_up", moe_.shared.gate_up, 1);
  shared_.down = node.tiles(5, "shared_down", moe_.shared.down, 1);
}

void MoeOp::compute(const Call& call) const {
  const Tensor x = call.input(0), logits = call.input(1);
  const std::int64_t rows = x.rows(moe_.expert.down.rows, "MoE's x");
  if (logits.rows(moe_.experts, "MoE's router_logits") != rows) {
    throw Refused("l4.cpu: MoE's x and router_logits have different numbers of rows");
  }
  float* const y = call.output(x.shape());
  SessionThreads threads = call.threads();
  moe(kernels_, moe_, experts_, shared_, x.data<const float>(), logits.data<const float>(), rows, y, threads);
}

}  // namespace l4::cpu
