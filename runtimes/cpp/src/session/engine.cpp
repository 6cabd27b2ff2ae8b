#include "session/engine.hpp"

#include <utility>

#include "cache/cuda_decoder.hpp"
#include "cache/host_decoder.hpp"
#include "engine/file_checks.hpp"
#include "onnxruntime/cpu_kernels.hpp"
#include "onnxruntime/interface_check.hpp"
#include "onnxruntime/portable.hpp"
#include "session/composition_check.hpp"
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
    throw bad_input("provider is " + in_quotes(options.provider) + ": give \"cpu\" or \"cuda\"");
  }
}

// Whether the manifest names a runtime that is here, and the caller a provider that can execute the engine.
void check_runtime(const std::string& directory, const engine::Manifest& manifest, const std::string& provider) {
  const engine::Runtime& runtime = manifest.decoder().runtime;
  if (runtime.name != "onnxruntime") {
    throw bad_input(directory + ": runs on " + runtime.name + " " + runtime.provider +
                    ", which this library does not have; run it from Python, or build it for cpu, ort-cpu or ort-cuda");
  }
  if (runtime.provider != "cpu" && runtime.provider != "cuda") {
    throw bad_input(directory + ": runs on " + runtime.name + " " + runtime.provider +
                    ", which this library does not have; upgrade it");
  }
  if (provider == "cuda" && runtime.provider != "cuda") {
    throw bad_input(directory + ": cannot be executed by 'cuda': it is for " + manifest.target);
  }
}

// Whether ONNX Runtime is new enough for the graphs that will be loaded: an older one could compute something else.
void check_version(const OnnxRuntime& runtime, const std::string& directory, const engine::Manifest& manifest,
                   bool on_card) {
  const engine::Graph* decoder = on_card ? &manifest.decoder() : &manifest.portable();
  for (const engine::Graph* graph : {decoder, manifest.graphs.find(engine::kVision)}) {
    if (graph != nullptr) runtime.require(graph->runtime.min_version, storage::in_directory(directory, graph->file));
  }
}

std::shared_ptr<const Decoder> open_on_host(const std::shared_ptr<const OnnxRuntime>& runtime,
                                            const std::string& directory, const engine::Manifest& manifest,
                                            int threads) {
  const engine::Graph& graph = manifest.portable();
  const SessionOptions options(runtime, threads, manifest.precision.activations == "fp8");
  if (manifest.needs_cpu_kernels()) add_cpu_kernels(*runtime, options);
  const auto session = open_on_cpu(runtime, directory, graph.file, options, manifest.packed_weights);
  check_interface(*session, graph, storage::in_directory(directory, graph.file));
  std::string provider = "CPUExecutionProvider";
  if (manifest.decoder().runtime.provider == "cuda") provider += " instead of CUDAExecutionProvider";
  return std::make_shared<HostDecoder>(session, std::move(provider), options.threads());
}

// On the first GPU, once it has computed the engine's check graph as the CPU did that built it: before the engine takes
// its memory.
std::shared_ptr<const Decoder> open_on_card(const std::shared_ptr<const OnnxRuntime>& runtime,
                                            const std::string& directory, const engine::Manifest& manifest,
                                            int threads) {
  const engine::Graph& graph = manifest.decoder();
  const auto cuda = open_card(*runtime, directory, graph.needs ? &*graph.needs : nullptr);
  const auto text = [](Cuda::Version version) {
    return std::to_string(version.first) + "." + std::to_string(version.second);
  };
  const VerdictKey installation{{"card", cuda->name()},
                                {"capability", text(cuda->capability())},
                                {"driver", "CUDA " + text(cuda->driver()) + " " + cuda->module()},
                                {"onnxruntime", runtime->version()},
                                {"l4export", L4EXPORT_VERSION}};
  check_composition(directory, manifest, cuda_provider, installation,
                    [&](const engine::Graph& check, const std::string& trace) {
                      const auto session = open_on_cuda(runtime, directory, check, threads, trace);
                      return TracedDecoder{session, std::make_shared<const CudaDecoder>(session, cuda)};
                    });
  return std::make_shared<const CudaDecoder>(open_on_cuda(runtime, directory, graph, threads), cuda);
}

}  // namespace

Engine::Engine(std::string directory, const EngineOptions& options) : directory_(std::move(directory)) {
  check_options(options);
  parts_.manifest = std::make_shared<const engine::Manifest>(options.verify ? engine::verify_files(directory_)
                                                                            : engine::load_manifest(directory_));
  check_runtime(directory_, *parts_.manifest, options.provider);
  const std::shared_future<void> digests = engine::check_files(directory_, parts_.manifest);
  try {
    load(options, digests);
  } catch (const Error&) {
    digests.get();  // a file that has been changed is the better reason
    throw;
  }
  digests.get();
}

void Engine::load(const EngineOptions& options, const std::shared_future<void>& digests) {
  const engine::Manifest& manifest = *parts_.manifest;
  const auto runtime = OnnxRuntime::open(options.onnxruntime);
  const auto threads = static_cast<int>(options.threads);
  const bool on_card = manifest.decoder().runtime.provider == "cuda" && options.provider != "cpu";
  check_version(*runtime, directory_, manifest, on_card);
  if (on_card) digests.get();  // a GPU's verdict is kept, so what it is judged by must be what was built
  parts_.decoder = on_card ? open_on_card(runtime, directory_, manifest, threads)
                           : open_on_host(runtime, directory_, manifest, threads);
  if (manifest.vision) {  // on the CPU, whatever executes the decoder: the numbers by which a GPU's tower is judged
    parts_.features = std::make_shared<ImageFeatures>(
        std::make_unique<const HostTower>(runtime, directory_, parts_.manifest, threads));
  }
}

std::shared_ptr<Session> Engine::load_session(const std::string& path) const {
  SavedSession saved = read_session(path, *parts_.manifest);
  return Session::restored(parts_, std::move(saved.state), saved.rows);
}

}  // namespace l4
