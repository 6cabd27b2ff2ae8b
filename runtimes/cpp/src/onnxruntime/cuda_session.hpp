// Sessions on ONNX Runtime's CUDA provider.
#pragma once

#include <memory>
#include <string>

#include "onnxruntime/cuda_driver.hpp"
#include "onnxruntime/inference_session.hpp"

namespace l4 {

constexpr const char* cuda_provider = "CUDAExecutionProvider";

// The first GPU of this machine, if it and its driver are as new as the graph needs, and ONNX Runtime has the provider.
// Raises Error (L4_ENVIRONMENT).
std::shared_ptr<Cuda> open_card(const OnnxRuntime& runtime, const std::string& directory,
                                const engine::DeviceNeeds* needs);

// Load a graph of the engine in `directory` on CUDA. With `trace`, every node is noted in a file whose name begins so.
// Raises Error (L4_BAD_INPUT): a graph that ONNX Runtime does not take, that does not fit the card, or is not as the
// manifest tells it.
std::shared_ptr<const InferenceSession> open_on_cuda(std::shared_ptr<const OnnxRuntime> runtime,
                                                     const std::string& directory, const engine::Graph& graph,
                                                     int threads, const std::string& trace = "");

}  // namespace l4
