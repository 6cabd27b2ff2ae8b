#include "onnxruntime/element_type.hpp"

#include <string>

#include "base/error.hpp"

namespace l4 {
namespace {
constexpr ElementType types[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2},
    {"bfloat16", ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, 2}, {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},
    {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},      {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},
    {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
};
}

const ElementType& element_type(std::string_view name) {
  for (const ElementType& type : types) {
    if (type.name == name) return type;
  }
  throw bad_input("tensors of " + in_quotes(name) + " are not known to this library; build the engine again");
}

}  // namespace l4
