// Types of tensors' elements: as a manifest calls them, and as ONNX Runtime numbers them.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <string_view>

namespace l4 {

struct ElementType {
  std::string_view name;  // NumPy's name of it, or bfloat16
  ONNXTensorElementDataType type;
  std::int64_t bytes;
};

// The type that a manifest calls so. Raises Error (L4_BAD_INPUT) for one that no graph of an engine has.
const ElementType& element_type(std::string_view name);

}  // namespace l4
