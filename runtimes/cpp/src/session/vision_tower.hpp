// An engine's vision tower on ONNX Runtime.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "engine/manifest.hpp"
#include "onnxruntime/inference_session.hpp"
#include "session/features.hpp"

namespace l4 {

// The tower on this machine's CPU: loaded when it is first asked, and refused where it is not as the manifest tells it.
// A few tiles are computed at a time, so that memory does not grow with their number.
class HostTower : public Tower {
 public:
  HostTower(std::shared_ptr<const OnnxRuntime> runtime, std::string directory,
            std::shared_ptr<const engine::Manifest> manifest, int threads)
      : runtime_(std::move(runtime)), directory_(std::move(directory)), manifest_(std::move(manifest)),
        threads_(threads) {}

  Features features(const float* tiles, std::size_t count, const RunOptions& options) const override;

 private:
  std::shared_ptr<const InferenceSession> loaded() const;

  std::shared_ptr<const OnnxRuntime> runtime_;
  std::string directory_;
  std::shared_ptr<const engine::Manifest> manifest_;
  int threads_;
  mutable std::mutex loading_;
  mutable std::shared_ptr<const InferenceSession> session_;
};

}  // namespace l4
