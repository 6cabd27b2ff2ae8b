// An operator's declaration to ONNX Runtime, made of a class that does the work.
#pragma once

#include <array>

#include "operators/call.hpp"
#include "operators/node.hpp"

namespace l4::cpu {

struct Input {
  ONNXTensorElementDataType type;
  bool optional = false;
};

constexpr Input kFloats{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
constexpr Input kBytes{ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8};
constexpr Input optional(Input input) { return {input.type, true}; }

// Work has `name`, `inputs` (an array of Input), a constructor of const Node& and compute(const Call&). One output, of
// float.
template <class Work>
struct CustomOp : OrtCustomOp {
  CustomOp() : OrtCustomOp{} {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Work::name; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Work::inputs.size(); };
    GetInputType = [](const OrtCustomOp*, std::size_t i) { return Work::inputs[i].type; };
    GetInputCharacteristic = [](const OrtCustomOp*, std::size_t i) {
      return Work::inputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size_t{1}; };
    GetOutputType = [](const OrtCustomOp*, std::size_t) { return kFloats.type; };
    GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) { return INPUT_OUTPUT_REQUIRED; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
      *kernel = nullptr;
      return guarded(*api, [&] { *kernel = new Kernel{*api, Work(Node(*api, info, Work::name))}; });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const Kernel& self = *static_cast<Kernel*>(kernel);
      return guarded(self.api, [&] { self.work.compute(Call(self.api, context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
  }

 private:
  struct Kernel {
    const OrtApi& api;
    Work work;
  };
};

}  // namespace l4::cpu
