// Engines, and what the library says of itself.
#ifndef L4EXPORT_ENGINE_HPP
#define L4EXPORT_ENGINE_HPP

#include <cstdint>
#include <string>

#include "l4export/error.hpp"

namespace l4export {

inline std::string version() { return l4_version(); }

// Compare every file of an engine with its manifest. Throws Error (L4_VERIFICATION_FAILED names the first other one).
inline void verify(const std::string& directory) { check(l4_verify(directory.c_str())); }

struct EngineOptions {
  std::string onnxruntime = {};  // path of libonnxruntime; empty: as l4_engine_options says of NULL
  std::string provider = {};     // "cpu" or "cuda"; empty: the one that the engine was built for
  std::int32_t threads = 0;      // 0: one for each core that the process may use
  bool verify = false;
};

class Engine {
 public:
  explicit Engine(const std::string& directory, const EngineOptions& options = {}) {
    l4_engine_options given = L4_ENGINE_OPTIONS_DEFAULT;
    if (!options.onnxruntime.empty()) given.onnxruntime = options.onnxruntime.c_str();
    if (!options.provider.empty()) given.provider = options.provider.c_str();
    given.threads = options.threads;
    given.verify = options.verify;
    l4_engine* made = nullptr;
    check(l4_engine_open(directory.c_str(), &given, &made));
    handle_.reset(made);
  }

  // What it points to lives as long as the engine.
  l4_engine_info info() const {
    l4_engine_info info{};
    info.size = sizeof info;
    check(l4_engine_get_info(handle_.get(), &info));
    return info;
  }

  std::string manifest() const { return l4_engine_manifest(handle_.get()); }
  void forget_images() const { check(l4_engine_forget_images(handle_.get())); }
  l4_engine* handle() const { return handle_.get(); }

 private:
  detail::Handle<l4_engine, &l4_engine_close> handle_;
};

}  // namespace l4export

#endif
