#include "operators/linear_op.hpp"

namespace l4::cpu {

LinearOp::LinearOp(const Node& node) : kernels_(session_kernels()) {
  linear_.activations = node.activations();
  linear_.format = node.format(node.number("N", 1), node.number("K", 1), node.number("bits", 1),
                               node.number("block_size", 1), node.number("zero_points", 0));
  tiles_ = node.tiles(1, "tiles", linear_.format, 1);
}

void LinearOp::compute(const Call& call) const {
  const Tensor x = call.input(0);
  const std::int64_t rows = x.rows(linear_.format.columns, "Linear's x");
  const auto bias = call.optional_input(2);
  if (bias && bias->shape() != std::vector{linear_.format.rows}) throw Refused("l4.cpu: Linear's bias is not [N]");
  std::vector<std::int64_t> shape = x.shape();
  shape.back() = linear_.format.rows;
  float* const y = call.output(shape);
  const float* const added = bias ? bias->data<const float>() : nullptr;
  SessionThreads threads = call.threads();
  linear(kernels_, linear_, tiles_, x.data<const float>(), rows, added, y, threads);
}

}  // namespace l4::cpu
