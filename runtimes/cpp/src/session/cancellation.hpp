// Ending a call from another thread.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>

#include "onnxruntime/run_options.hpp"

namespace l4 {

class Cancellation {
 public:
  explicit Cancellation(std::shared_ptr<const OnnxRuntime> runtime) : options_(std::move(runtime)) {}

  void arm() noexcept;     // a call begins, which may be cancelled
  void disarm() noexcept;  // it has ended
  void request() noexcept;  // from any thread: end the call that runs, if one does

  bool wanted() const noexcept { return wanted_; }
  void check() const;  // raises Error (L4_CANCELLED) where the call is to end

  // Those that its runs must have, so that they end.
  const RunOptions& options() const { return options_; }

 private:
  RunOptions options_;
  std::mutex lock_;  // so that nobody cancels the next call instead
  bool armed_ = false;
  std::atomic<bool> wanted_ = false;
};

}  // namespace l4
