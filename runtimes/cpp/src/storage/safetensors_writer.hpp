// Writes safetensors files in a stream: the header is known beforehand, the tensors never all in memory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace l4::storage {

struct NewTensor {
  std::string name;
  std::string dtype;  // as safetensors spells it
  std::vector<std::int64_t> shape;
  // Gives the tensor's bytes, row-major and little-endian, in pieces of any size; called when its turn comes.
  std::function<void(const std::function<void(std::string_view)>& give)> pieces;
};

// Write tensors, in order, to `path`, through a file beside it: one that was there is replaced in one step at the end.
//
// Raises Error (L4_STORAGE) where writing fails; nothing remains then, and a file that was there is as before.
void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, std::string>>& metadata,
                       const std::vector<NewTensor>& tensors);

}  // namespace l4::storage
