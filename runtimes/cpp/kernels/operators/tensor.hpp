// A tensor that ONNX Runtime owns.
#pragma once

#include <cstdint>
#include <vector>

#include "operators/api.hpp"

namespace l4::cpu {

class Tensor {
 public:
  Tensor(const OrtApi& api, const OrtValue* value) : api_(api), value_(value) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api, api.GetTensorTypeAndShape(value, &info));
    std::size_t rank = 0;
    OrtStatus* status = api.GetDimensionsCount(info, &rank);
    shape_.resize(rank);
    if (status == nullptr) status = api.GetDimensions(info, shape_.data(), rank);
    if (status == nullptr) status = api.GetTensorElementType(info, &type_);
    api.ReleaseTensorTypeAndShapeInfo(info);
    check(api, status);
  }

  ONNXTensorElementDataType type() const { return type_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  std::int64_t elements() const {
    std::int64_t count = 1;
    for (std::int64_t dim : shape_) count *= dim;
    return count;
  }
  // Of [.., columns]. Refuses another last dimension; `what` is what is refused.
  std::int64_t rows(std::int64_t columns, const char* what) const {
    if (shape_.empty() || shape_.back() != columns) {
      throw Refused("l4.cpu: " + std::string(what) + " is not [.., " + std::to_string(columns) + "]");
    }
    return elements() / columns;
  }

  template <class T>
  T* data() const {
    void* memory = nullptr;
    check(api_, api_.GetTensorMutableData(const_cast<OrtValue*>(value_), &memory));
    return static_cast<T*>(memory);
  }

 private:
  const OrtApi& api_;
  const OrtValue* value_;
  std::vector<std::int64_t> shape_;
  ONNXTensorElementDataType type_ = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
};

}  // namespace l4::cpu
