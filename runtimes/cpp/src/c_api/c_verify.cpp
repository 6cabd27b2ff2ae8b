// Verification of an engine's files, which needs no ONNX Runtime.
#include "c_api/guard.hpp"
#include "engine/file_checks.hpp"

extern "C" l4_status l4_verify(const char* directory) {
  return l4::c_api::guarded([&] { l4::engine::verify_files(&l4::c_api::given(directory, "the directory")); });
}
