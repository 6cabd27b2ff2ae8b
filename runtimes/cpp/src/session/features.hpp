// Features of images: what a vision tower makes of their tiles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "onnxruntime/run_options.hpp"

namespace l4 {

// Rows [rows, width] in the dtype that the decoder takes; nobody changes them.
struct Features {
  std::vector<std::byte> bytes;
  std::int64_t rows = 0;
};

// A loaded tower, or one that is loaded when it is first asked; used by any number of threads.
class Tower {
 public:
  virtual ~Tower() = default;

  // The rows of `count` tiles float32 [count, 3, side, side]. Raises Error.
  virtual Features features(const float* tiles, std::size_t count, const RunOptions& options) const = 0;
};

}  // namespace l4
