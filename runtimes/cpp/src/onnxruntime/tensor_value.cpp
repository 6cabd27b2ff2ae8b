#include "onnxruntime/tensor_value.hpp"

namespace l4 {

std::int64_t elements(const std::int64_t* shape, std::size_t rank) {
  std::int64_t count = 1;
  for (std::size_t axis = 0; axis < rank; ++axis) count *= shape[axis];
  return count;
}

Owned<OrtValue> tensor_at(const OnnxRuntime& runtime, const OrtMemoryInfo* where, void* data, const Shape& shape,
                          ONNXTensorElementDataType type, std::int64_t element_bytes) {
  OrtValue* value = nullptr;
  const auto bytes = static_cast<std::size_t>(elements(shape.data(), shape.size()) * element_bytes);
  runtime.check(
      runtime.api().CreateTensorWithDataAsOrtValue(where, data, bytes, shape.data(), shape.size(), type, &value));
  return {value, runtime.api().ReleaseValue};
}

Shape shape_of(const OnnxRuntime& runtime, const OrtValue* value) {
  const OrtApi& api = runtime.api();
  OrtTensorTypeAndShapeInfo* info = nullptr;
  runtime.check(api.GetTensorTypeAndShape(value, &info));
  const Owned<OrtTensorTypeAndShapeInfo> owned(info, api.ReleaseTensorTypeAndShapeInfo);
  std::size_t rank = 0;
  runtime.check(api.GetDimensionsCount(info, &rank));
  Shape shape(rank);
  runtime.check(api.GetDimensions(info, shape.data(), rank));
  return shape;
}

Owned<OrtMemoryInfo> host_memory(const OnnxRuntime& runtime) {
  OrtMemoryInfo* info = nullptr;
  runtime.check(runtime.api().CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &info));
  return {info, runtime.api().ReleaseMemoryInfo};
}

}  // namespace l4
