// Sessions on this machine's CPU, also of an engine for another device: its portable graph, with weights in the order
// that a CPU reads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "onnxruntime/inference_session.hpp"

namespace l4 {

// Load the graph `file` of the engine in `directory` on the CPU. `packed`: weights that the graph reads, which lie
// packed in the engine; they are in memory as long as the session is. Raises Error (L4_BAD_INPUT): a graph that ONNX
// Runtime does not take, or packed weights that do not fit into memory.
std::shared_ptr<const InferenceSession> open_on_cpu(std::shared_ptr<const OnnxRuntime> runtime,
                                                    const std::string& directory, const std::string& file,
                                                    const SessionOptions& options,
                                                    const std::vector<engine::PackedWeight>& packed = {});

}  // namespace l4
