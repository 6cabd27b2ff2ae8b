#include "onnxruntime/run_options.hpp"

#include <utility>

namespace l4 {

RunOptions::RunOptions(std::shared_ptr<const OnnxRuntime> runtime)
    : runtime_(std::move(runtime)), options_(nullptr, runtime_->api().ReleaseRunOptions) {
  OrtRunOptions* options = nullptr;
  runtime_->check(runtime_->api().CreateRunOptions(&options));
  options_.reset(options);
  runtime_->check(runtime_->api().RunOptionsSetRunLogSeverityLevel(options, ORT_LOGGING_LEVEL_FATAL));
}

// These set a flag and cannot fail.
void RunOptions::terminate() const noexcept {
  if (OrtStatus* status = runtime_->api().RunOptionsSetTerminate(options_.get())) runtime_->api().ReleaseStatus(status);
}
void RunOptions::allow() const noexcept {
  if (OrtStatus* status = runtime_->api().RunOptionsUnsetTerminate(options_.get())) {
    runtime_->api().ReleaseStatus(status);
  }
}

}  // namespace l4
