// How keys and values lie in memory, by their dtype.
#pragma once

#include <string_view>

#include "engine/manifest.hpp"

namespace l4::engine {

// Of one of the dtypes that a manifest can have.
inline KVStorage kv_storage_of(std::string_view dtype) {
  if (dtype == "fp16") return {"float16", 1};
  if (dtype == "bf16") return {"bfloat16", 1};
  if (dtype == "int8") return {"int8", 1};
  if (dtype == "int4") return {"uint8", 2};
  return {"float32", 1};
}

}  // namespace l4::engine
