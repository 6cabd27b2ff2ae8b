// A decoder that ONNX Runtime's CPU provider executes.
#pragma once

#include "cache/kv_cache.hpp"
#include "onnxruntime/inference_session.hpp"

namespace l4 {

class HostDecoder : public Decoder {
 public:
  // `provider`: as a report should name it.
  HostDecoder(std::shared_ptr<const InferenceSession> session, std::string provider, int threads)
      : session_(std::move(session)), provider_(std::move(provider)), threads_(threads) {}

  std::unique_ptr<KVCache> new_cache(const engine::Manifest& manifest, std::int64_t rows,
                                     std::int64_t capacity) const override;
  const std::shared_ptr<const OnnxRuntime>& runtime() const override { return session_->runtime(); }
  std::string provider() const override { return provider_; }
  int threads() const override { return threads_; }

 private:
  std::shared_ptr<const InferenceSession> session_;
  std::string provider_;
  int threads_;
};

}  // namespace l4
