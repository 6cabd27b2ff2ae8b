// A decoder that ONNX Runtime's CUDA provider executes.
#pragma once

#include "cache/device_cache.hpp"
#include "onnxruntime/cuda_session.hpp"

namespace l4 {

class CudaDecoder : public Decoder {
 public:
  CudaDecoder(std::shared_ptr<const InferenceSession> session, std::shared_ptr<const Cuda> cuda)
      : session_(std::move(session)), cuda_(std::move(cuda)) {}

  std::unique_ptr<KVCache> new_cache(const engine::Manifest& manifest, std::int64_t rows,
                                     std::int64_t capacity) const override {
    return std::make_unique<DeviceCache>(session_, cuda_, manifest, rows, capacity);
  }
  const std::shared_ptr<const OnnxRuntime>& runtime() const override { return session_->runtime(); }
  std::string provider() const override { return std::string(cuda_provider) + " on " + cuda_->name(); }
  int threads() const override { return 0; }

 private:
  std::shared_ptr<const InferenceSession> session_;
  std::shared_ptr<const Cuda> cuda_;
};

}  // namespace l4
