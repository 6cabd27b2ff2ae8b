#include "onnxruntime/inference_session.hpp"

#include <sched.h>

#include <algorithm>
#include <utility>

#include "onnxruntime/element_type.hpp"

namespace l4 {
namespace {

using NameOf = OrtStatus* (*)(const OrtSession*, std::size_t, OrtAllocator*, char**);
using TypeOf = OrtStatus* (*)(const OrtSession*, std::size_t, OrtTypeInfo**);

std::vector<engine::Dimension> shape_of(const OnnxRuntime& runtime, const OrtTensorTypeAndShapeInfo* info) {
  const OrtApi& api = runtime.api();
  std::size_t rank = 0;
  runtime.check(api.GetDimensionsCount(info, &rank));
  std::vector<std::int64_t> sizes(rank);
  std::vector<const char*> names(rank);
  runtime.check(api.GetDimensions(info, sizes.data(), rank));
  runtime.check(api.GetSymbolicDimensions(info, names.data(), rank));
  std::vector<engine::Dimension> shape(rank);
  for (std::size_t axis = 0; axis < rank; ++axis) {
    shape[axis] = {sizes[axis], names[axis] != nullptr ? names[axis] : ""};
  }
  return shape;
}

std::string dtype_of(ONNXTensorElementDataType type) {
  for (const char* name : {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64"}) {
    if (element_type(name).type == type) return name;
  }
  return "type " + std::to_string(static_cast<int>(type)) + " of ONNX";
}

// One side of a session's tensors, with no `optional`: ONNX Runtime tells those apart by where they are listed.
std::vector<engine::TensorSpec> tensors_of(const OnnxRuntime& runtime, const OrtSession* session, std::size_t count,
                                           NameOf name_of, TypeOf type_of) {
  const OrtApi& api = runtime.api();
  OrtAllocator* allocator = nullptr;
  runtime.check(api.GetAllocatorWithDefaultOptions(&allocator));
  std::vector<engine::TensorSpec> tensors(count);
  for (std::size_t index = 0; index < count; ++index) {
    char* name = nullptr;
    runtime.check(name_of(session, index, allocator, &name));
    tensors[index].name = name;
    runtime.check(api.AllocatorFree(allocator, name));
    OrtTypeInfo* type = nullptr;
    runtime.check(type_of(session, index, &type));
    const Owned<OrtTypeInfo> owned(type, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    runtime.check(api.CastTypeInfoToTensorInfo(type, &info));
    if (info == nullptr) continue;  // no tensor: its dtype is none that a manifest has
    ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    runtime.check(api.GetTensorElementType(info, &element));
    tensors[index].dtype = dtype_of(element);
    tensors[index].shape = shape_of(runtime, info);
  }
  return tensors;
}

}  // namespace

int usable_cores() {
  for (int most = 1024; most <= 1 << 20; most *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(most));
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(most));
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    const int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (known) return std::max(count, 1);
  }
  return 1;
}

SessionOptions::SessionOptions(std::shared_ptr<const OnnxRuntime> runtime, int threads, bool fp8_activations)
    : runtime_(std::move(runtime)), options_(nullptr, runtime_->api().ReleaseSessionOptions),
      threads_(threads != 0 ? threads : usable_cores()) {
  const OrtApi& api = runtime_->api();
  OrtSessionOptions* options = nullptr;
  runtime_->check(api.CreateSessionOptions(&options));
  options_.reset(options);
  // failures are returned, and the caller reports them in one line
  runtime_->check(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
  runtime_->check(api.SetIntraOpNumThreads(options, threads_));
  // if a DequantizeLinear and a product are fused, activations must stay as they are
  set_entry("session.qdq_matmulnbits_accuracy_level", "1");
  // products between codes would be fused into operators for integers, which do not take FP8
  if (fp8_activations) set_entry("session.disable_quant_qdq", "1");
}

void SessionOptions::set_entry(const char* key, const char* value) {
  runtime_->check(runtime_->api().AddSessionConfigEntry(options_.get(), key, value));
}

InferenceSession::InferenceSession(std::shared_ptr<const OnnxRuntime> runtime, const std::string& path,
                                   const SessionOptions& options)
    : runtime_(std::move(runtime)), session_(nullptr, runtime_->api().ReleaseSession) {
  const OrtApi& api = runtime_->api();
  OrtSession* session = nullptr;
  runtime_->check(api.CreateSession(runtime_->environment(), path.c_str(), options.get(), &session));
  session_.reset(session);
  std::size_t count = 0;
  runtime_->check(api.SessionGetInputCount(session, &count));
  inputs_ = tensors_of(*runtime_, session, count, api.SessionGetInputName, api.SessionGetInputTypeInfo);
  runtime_->check(api.SessionGetOverridableInitializerCount(session, &count));
  optional_inputs_ = tensors_of(*runtime_, session, count, api.SessionGetOverridableInitializerName,
                                api.SessionGetOverridableInitializerTypeInfo);
  runtime_->check(api.SessionGetOutputCount(session, &count));
  outputs_ = tensors_of(*runtime_, session, count, api.SessionGetOutputName, api.SessionGetOutputTypeInfo);
}

}  // namespace l4
