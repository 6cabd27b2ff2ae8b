// What a run of a graph reads and writes, bound by address.
#pragma once

#include <memory>

#include "onnxruntime/inference_session.hpp"

namespace l4 {

class Binding {
 public:
  explicit Binding(std::shared_ptr<const InferenceSession> session);

  // The memory behind a value must live as long as it is bound; the value itself need not.
  void bind_input(const char* name, const OrtValue* value);
  void bind_output(const char* name, const OrtValue* value);

  // Raises OnnxRuntimeFailure, also where `options` were told to terminate.
  void run(const RunOptions& options);

 private:
  std::shared_ptr<const InferenceSession> session_;
  Owned<OrtIoBinding> binding_;
};

}  // namespace l4
