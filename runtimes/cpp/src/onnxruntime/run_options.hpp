// Options of a run, by which another thread can end it.
#pragma once

#include <memory>

#include "onnxruntime/library.hpp"

namespace l4 {

class RunOptions {
 public:
  explicit RunOptions(std::shared_ptr<const OnnxRuntime> runtime);

  const OrtRunOptions* get() const { return options_.get(); }

  // From any thread: the run that has these options ends at its next node, and so does every later one until `allow`.
  void terminate() const noexcept;
  void allow() const noexcept;

  // As ONNX Runtime's documents have them.
  void set_entry(const char* key, const char* value) const {
    runtime_->check(runtime_->api().AddRunConfigEntry(options_.get(), key, value));
  }

 private:
  std::shared_ptr<const OnnxRuntime> runtime_;
  Owned<OrtRunOptions> options_;
};

}  // namespace l4
