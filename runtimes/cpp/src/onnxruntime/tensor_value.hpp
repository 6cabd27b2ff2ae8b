// A tensor of ONNX Runtime whose elements lie in memory that somebody else owns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "onnxruntime/library.hpp"

namespace l4 {

using Shape = std::vector<std::int64_t>;

// Number of elements of a shape that is known to fit into memory.
std::int64_t elements(const std::int64_t* shape, std::size_t rank);

// A tensor at `data`, in memory that `where` describes; `data` must outlive it and must not be NULL.
Owned<OrtValue> tensor_at(const OnnxRuntime& runtime, const OrtMemoryInfo* where, void* data, const Shape& shape,
                          ONNXTensorElementDataType type, std::int64_t element_bytes);

// The shape of a tensor.
Shape shape_of(const OnnxRuntime& runtime, const OrtValue* value);

// This machine's memory.
Owned<OrtMemoryInfo> host_memory(const OnnxRuntime& runtime);

}  // namespace l4
