// One call of a node.
#pragma once

#include <optional>

#include "operators/tensor.hpp"

namespace l4::cpu {

class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {}

  // Input `index`, which the operator's declaration requires.
  Tensor input(std::size_t index) const { return *optional_input(index); }

  std::optional<Tensor> optional_input(std::size_t index) const {
    std::size_t count = 0;
    check(api_, api_.KernelContext_GetInputCount(context_, &count));
    const OrtValue* value = nullptr;
    if (index < count) check(api_, api_.KernelContext_GetInput(context_, index, &value));
    if (value == nullptr) return std::nullopt;
    return Tensor(api_, value);
  }

  float* output(const std::vector<std::int64_t>& shape) const {
    OrtValue* value = nullptr;
    check(api_, api_.KernelContext_GetOutput(context_, 0, shape.data(), shape.size(), &value));
    return Tensor(api_, value).data<float>();
  }

  SessionThreads threads() const { return {api_, context_}; }

 private:
  const OrtApi& api_;
  OrtKernelContext* context_;
};

}  // namespace l4::cpu
