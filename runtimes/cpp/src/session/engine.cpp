#include "session/engine.hpp"

#include <utility>

#include "cache/host_decoder.hpp"
#include "engine/file_checks.hpp"
#include "onnxruntime/interface_check.hpp"
#include "onnxruntime/portable.hpp"
#include "session/saved_session.hpp"
#include "session/vision_tower.hpp"
#include "storage/files.hpp"

namespace l4 {
namespace {

constexpr std::int64_t most_threads = 1024;

void check_options(const EngineOptions& options) {
  if (options.threads < 0 || options.threads > most_threads) {
    throw bad_input("threads is " + std::to_string(options.threads) + ": give a whole number, 0 to " +
                    std::to_string(most_threads));
  }
  if (!options.provider.empty() && options.provider != "cpu" && options.provider != "cuda") {
    throw bad_input("provider is " + quoted(options.provider) + ": give \"cpu\" or \"cuda\"");
  }
}

// Whether the manifest names a runtime that is here, and the caller a provider that can execute the engine.
void check_runtime(const std::string& directory, const engine::Manifest& manifest, const std::string& provider) {
  const engine::Runtime& runtime = manifest.decoder().runtime;
  if (runtime.name != "onnxruntime") {
    throw bad_input(directory + ": runs on " + runtime.name + " " + runtime.provider +
                    ", which this library does not have; run it from Python, or build it for ort-cpu or ort-cuda");
  }
  if (runtime.provider != "cpu" && runtime.provider != "cuda") {
    throw bad_input(directory + ": runs on " + runtime.name + " " + runtime.provider +
                    ", which this library does not have; upgrade it");
  }
  if (provider == "cuda" && runtime.provider != "cuda") {
    throw bad_input(directory + ": cannot be executed by 'cuda': it is for " + manifest.target);
  }
}

std::shared_ptr<const Decoder> open_on_host(const std::shared_ptr<const OnnxRuntime>& runtime,
                                            const std::string& directory, const engine::Manifest& manifest,
                                            int threads) {
  const engine::Graph& graph = manifest.portable();
  const SessionOptions options(runtime, threads, manifest.precision.activations == "fp8");
  const auto session = open_on_cpu(runtime, directory, graph.file, options, manifest.packed_weights);
  check_interface(*session, graph, storage::in_directory(directory, graph.file));
  std::string provider = "CPUExecutionProvider";
  if (manifest.decoder().runtime.provider == "cuda") provider += " instead of CUDAExecutionProvider";
  return std::make_shared<HostDecoder>(session, std::move(provider), options.threads());
}

}  // namespace

Engine::Engine(std::string directory, const EngineOptions& options) : directory_(std::move(directory)) {
  check_options(options);
  parts_.manifest = std::make_shared<const engine::Manifest>(options.verify ? engine::verify_files(directory_)
                                                                            : engine::load_manifest(directory_));
  const engine::Manifest& manifest = *parts_.manifest;
  check_runtime(directory_, manifest, options.provider);
  engine::check_files(directory_, manifest);
  const auto runtime = OnnxRuntime::open(options.onnxruntime);
  const auto threads = static_cast<int>(options.threads);
  if (manifest.decoder().runtime.provider == "cuda" && options.provider != "cpu") {
    throw environment_lacks(directory_ + ": is for a GPU, on which this library does not run engines yet; run it from "
                                         "Python, or open it with the provider \"cpu\"");
  }
  parts_.decoder = open_on_host(runtime, directory_, manifest, threads);
  if (manifest.vision) {
    parts_.features = std::make_shared<ImageFeatures>(
        std::make_unique<const HostTower>(runtime, directory_, parts_.manifest, threads));
  }
}

std::shared_ptr<Session> Engine::load_session(const std::string& path) const {
  SavedSession saved = read_session(path, *parts_.manifest);
  return Session::restored(parts_, std::move(saved.state), saved.rows);
}

}  // namespace l4
