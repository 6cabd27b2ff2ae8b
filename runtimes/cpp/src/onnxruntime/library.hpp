// ONNX Runtime, opened with dlopen and used through its table of C functions.
//
// Nothing links to it: whatever version from 1.21 on is there serves the table of 1.21. Its C++ wrappers differ from
// version to version, so that none is used.
#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>

#include "base/error.hpp"

namespace l4 {

// An object of ONNX Runtime, released with this.
template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// A call of ONNX Runtime that failed: its own words, as one line of at most 300 bytes.
class OnnxRuntimeFailure : public Error {
 public:
  explicit OnnxRuntimeFailure(const std::string& words) : Error(L4_BAD_INPUT, printable(words)) {}
  // Whether it failed for want of memory, for which ONNX Runtime has no code of its own.
  bool out_of_memory() const;
};

class OnnxRuntime {
 public:
  // Open the library at `path`; empty: that of the variable L4EXPORT_ONNXRUNTIME, else the one that the loader finds.
  // It stays loaded until the process ends, for it does not bear being unloaded. Raises Error (L4_ENVIRONMENT): there
  // is none, it is older than 1.21, or it is something else.
  static std::shared_ptr<const OnnxRuntime> open(const std::string& path);

  const OrtApi& api() const { return *api_; }
  const OrtApiBase& base() const { return *base_; }
  const std::string& version() const { return version_; }
  const std::string& path() const { return path_; }  // as it was given or found
  OrtEnv* environment() const { return environment_.get(); }

  // Raises Error (L4_ENVIRONMENT) where this is older than the version `least` that a graph, told by its path, needs.
  void require(const std::string& least, const std::string& graph) const;

  // Raises OnnxRuntimeFailure unless a call has succeeded.
  void check(OrtStatus* status) const {
    if (status != nullptr) fail(status);
  }

 private:
  OnnxRuntime(std::string path, const OrtApiBase& base, const OrtApi& api);
  [[noreturn]] void fail(OrtStatus* status) const;

  std::string path_, version_;
  const OrtApiBase* base_;
  const OrtApi* api_;
  Owned<OrtEnv> environment_;  // ONNX Runtime counts its users: all of a process share one
};

}  // namespace l4
