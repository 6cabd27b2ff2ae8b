#include "onnxruntime/interface_check.hpp"

#include <algorithm>
#include <vector>

namespace l4 {
namespace {

bool same_shape(const std::vector<engine::Dimension>& a, const std::vector<engine::Dimension>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& one, const auto& other) {
    return one.name == other.name && (!one.name.empty() || one.size == other.size);
  });
}

// In any order; names are unique in a graph and in a manifest.
bool same_tensors(const std::vector<engine::TensorSpec>& declared, bool optional,
                  const std::vector<engine::TensorSpec>& found) {
  std::size_t count = 0;
  for (const engine::TensorSpec& told : declared) {
    if (told.optional != optional) continue;
    ++count;
    const bool there = std::any_of(found.begin(), found.end(), [&](const engine::TensorSpec& tensor) {
      return tensor.name == told.name && tensor.dtype == told.dtype && same_shape(tensor.shape, told.shape);
    });
    if (!there) return false;
  }
  return count == found.size();
}

}  // namespace

void check_interface(const InferenceSession& session, const engine::Graph& graph, const std::string& path) {
  if (!same_tensors(graph.inputs, false, session.inputs()) ||
      !same_tensors(graph.inputs, true, session.optional_inputs()) ||
      !same_tensors(graph.outputs, false, session.outputs())) {
    throw bad_input(path + ": has other inputs or outputs than manifest.json declares; build the engine again");
  }
}

}  // namespace l4
