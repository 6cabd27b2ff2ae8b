// A loaded graph against what the manifest says of it.
#pragma once

#include <string>

#include "onnxruntime/inference_session.hpp"

namespace l4 {

// The graph's own inputs and outputs are those that the manifest declares. `path` is the graph's file.
// Raises Error (L4_BAD_INPUT).
void check_interface(const InferenceSession& session, const engine::Graph& graph, const std::string& path);

}  // namespace l4
