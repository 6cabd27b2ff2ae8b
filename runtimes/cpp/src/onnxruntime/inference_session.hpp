// A loaded graph, with the options that an engine's graphs are loaded with.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "engine/manifest.hpp"
#include "onnxruntime/library.hpp"
#include "onnxruntime/run_options.hpp"

namespace l4 {

// ONNX Runtime's options for an engine's graph, on any provider: those of l4export/runtimes/onnxruntime/engine.py,
// where each has its reason. `threads` 0: one for each core that the process may use.
class SessionOptions {
 public:
  SessionOptions(std::shared_ptr<const OnnxRuntime> runtime, int threads, bool fp8_activations = false);

  OrtSessionOptions* get() const { return options_.get(); }
  int threads() const { return threads_; }
  void set_entry(const char* key, const char* value);

 private:
  std::shared_ptr<const OnnxRuntime> runtime_;
  Owned<OrtSessionOptions> options_;
  int threads_;
};

class InferenceSession {
 public:
  // Load the graph at `path`. Raises OnnxRuntimeFailure.
  InferenceSession(std::shared_ptr<const OnnxRuntime> runtime, const std::string& path, const SessionOptions& options);

  const std::shared_ptr<const OnnxRuntime>& runtime() const { return runtime_; }
  OrtSession* get() const { return session_.get(); }

  // The graph's own: inputs without a default, those with one, and outputs.
  const std::vector<engine::TensorSpec>& inputs() const { return inputs_; }
  const std::vector<engine::TensorSpec>& optional_inputs() const { return optional_inputs_; }
  const std::vector<engine::TensorSpec>& outputs() const { return outputs_; }

  // Bytes that the graph reads where they are, which live as long as the session.
  void keep(std::shared_ptr<const void> bytes) { kept_.push_back(std::move(bytes)); }

 private:
  std::shared_ptr<const OnnxRuntime> runtime_;
  std::vector<std::shared_ptr<const void>> kept_;  // released after the session
  Owned<OrtSession> session_;
  std::vector<engine::TensorSpec> inputs_, optional_inputs_, outputs_;
};

// Cores that the process may use.
int usable_cores();

}  // namespace l4
