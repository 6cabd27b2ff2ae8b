#include "operators/mlp_op.hpp"

#include "operators/gated_node.hpp"

namespace l4::cpu {

MlpOp::MlpOp(const Node& node)
    : kernels_(session_kernels()), format_(GatedNode(node, 2).format(0)), activations_(node.activations()) {
  tiles_ = {node.tiles(1, "gate_up", format_.gate_up, 1), node.tiles(2, "down", format_.down, 1)};
}

void MlpOp::compute(const Call& call) const {
  const Tensor x = call.input(0);
  const std::int64_t rows = x.rows(format_.down.rows, "MLP's x");
  float* const y = call.output(x.shape());
  std::vector<GatedGroup> groups;
  groups.emplace_back(format_, tiles_, every_row(rows), activations_);
  SessionThreads threads = call.threads();
  run_groups(kernels_, groups, x.data<const float>(), rows, y, threads);
}

}  // namespace l4::cpu
