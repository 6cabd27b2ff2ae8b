// Attributes that the operators over gated units share.
#pragma once

#include "gated.hpp"
#include "operators/node.hpp"

namespace l4::cpu {

// hidden, intermediate, and the lists bits, block_size and zero_points, which have a number for each input of tiles.
class GatedNode {
 public:
  GatedNode(const Node& node, std::size_t inputs_of_tiles)
      : node_(node),
        hidden_(node.number("hidden", 1)),
        width_(node.number("intermediate", 1)),
        bits_(node.numbers("bits", inputs_of_tiles)),
        blocks_(node.numbers("block_size", inputs_of_tiles)),
        zeros_(node.numbers("zero_points", inputs_of_tiles)) {
    if (width_ % 16 != 0) node.refuse("intermediate is " + std::to_string(width_) + ", no multiple of 16");
  }

  // Of the unit whose inputs of tiles are numbers `i` and `i` + 1 of them.
  GatedFormat format(std::size_t i) const {
    return {node_.format(2 * width_, hidden_, bits_[i], blocks_[i], zeros_[i]),
            node_.format(hidden_, width_, bits_[i + 1], blocks_[i + 1], zeros_[i + 1])};
  }

 private:
  const Node& node_;
  std::int64_t hidden_, width_;
  std::vector<std::int64_t> bits_, blocks_, zeros_;
};

}  // namespace l4::cpu
