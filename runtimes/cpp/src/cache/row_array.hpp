// Views of one row's keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace l4 {

// The tokens of one row in one cache [heads, tokens, width]: those of a head lie one behind the other.
struct RowArray {
  const std::byte* data = nullptr;  // need not be aligned
  std::int64_t heads = 0, tokens = 0, width = 0;
  std::int64_t head_stride_bytes = 0;  // from one head's first token to the next head's
};

using RowArrays = std::vector<RowArray>;  // one for each name of a CacheSpec

}  // namespace l4
