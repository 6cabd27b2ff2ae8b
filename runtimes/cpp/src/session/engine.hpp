// An engine: a decoder, loaded once and shared by any number of sessions and threads.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "session/session.hpp"

namespace l4 {

struct EngineOptions {
  std::string onnxruntime;  // path of its library; empty: as OnnxRuntime::open searches
  std::string provider;     // "cpu" or "cuda"; empty: the one that the engine was built for
  std::int64_t threads = 0;  // of the CPU for one call; 0: one for each core that the process may use
  bool verify = false;      // whether the digest of every file is compared with the manifest
};

class Engine {
 public:
  // Open an engine directory. Raises Error: L4_BAD_INPUT, L4_ENVIRONMENT, L4_VERIFICATION_FAILED, L4_STORAGE.
  Engine(std::string directory, const EngineOptions& options);

  const std::string& directory() const { return directory_; }
  const std::shared_ptr<const engine::Manifest>& manifest() const { return parts_.manifest; }
  const Decoder& decoder() const { return *parts_.decoder; }

  // A fresh session; as the constructor of Session.
  std::shared_ptr<Session> session(std::int64_t rows, std::int64_t capacity, std::vector<std::int64_t> starts) const {
    return std::make_shared<Session>(parts_, rows, capacity, std::move(starts));
  }
  // The session that `Session::save` of any runtime wrote. Raises Error: L4_BAD_INPUT, L4_STORAGE.
  std::shared_ptr<Session> load_session(const std::string& path) const;

  // Free what is kept of images. Sessions go on; an image that is shown again is computed again.
  void forget_images() const {
    if (parts_.features) parts_.features->forget();
  }

 private:
  // What the manifest names, with the ONNX Runtime of the options. Of `digests` see engine::check_files.
  void load(const EngineOptions& options, const std::shared_future<void>& digests);

  std::string directory_;
  SessionParts parts_;
};

}  // namespace l4
