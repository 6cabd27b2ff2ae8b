#include "onnxruntime/cuda_session.hpp"

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "onnxruntime/interface_check.hpp"
#include "storage/files.hpp"

namespace l4 {
namespace {

Cuda::Version version_of(const std::string& text) {
  Cuda::Version version{0, 0};
  std::sscanf(text.c_str(), "%d.%d", &version.first, &version.second);
  return version;
}

std::string text_of(Cuda::Version version) {
  return std::to_string(version.first) + "." + std::to_string(version.second);
}

void check_provider(const OnnxRuntime& runtime, const std::string& directory) {
  char** names = nullptr;
  int count = 0;
  runtime.check(runtime.api().GetAvailableProviders(&names, &count));
  const bool there =
      std::any_of(names, names + count, [](const char* name) { return std::string_view(name) == cuda_provider; });
  if (OrtStatus* status = runtime.api().ReleaseAvailableProviders(names, count)) runtime.api().ReleaseStatus(status);
  if (!there) {
    throw environment_lacks(directory + ": this ONNX Runtime " + runtime.version() + " (" + printable(runtime.path()) +
                            ") has no " + cuda_provider + "; give the library of onnxruntime-gpu");
  }
}

// With the provider appended; what is not named has ONNX Runtime's default.
void append_cuda(const OnnxRuntime& runtime, const SessionOptions& options) {
  const char* keys[] = {"arena_extend_strategy", "use_tf32"};
  // Growing by what is asked for: the default, powers of two, takes up to twice what is used. And float32 products are
  // float32: TF32 has 10 bits of them, and numbers would depend on the card.
  const char* values[] = {"kSameAsRequested", "0"};
  OrtCUDAProviderOptionsV2* cuda = nullptr;
  runtime.check(runtime.api().CreateCUDAProviderOptions(&cuda));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> owned(
      cuda, runtime.api().ReleaseCUDAProviderOptions);
  runtime.check(runtime.api().UpdateCUDAProviderOptions(cuda, keys, values, 2));
  runtime.check(runtime.api().SessionOptionsAppendExecutionProvider_CUDA_V2(options.get(), cuda));
}

}  // namespace

std::shared_ptr<Cuda> open_card(const OnnxRuntime& runtime, const std::string& directory,
                                const engine::DeviceNeeds* needs) {
  const auto cuda = Cuda::open(directory + ": an ort-cuda engine runs on an NVIDIA GPU");
  if (needs != nullptr && cuda->capability() < version_of(needs->compute_capability)) {
    throw environment_lacks(directory + ": " + cuda->name() + " has compute capability " + text_of(cuda->capability()) +
                            ", and the engine's operators begin with " + needs->compute_capability +
                            "; take a newer GPU");
  }
  if (needs != nullptr && cuda->driver() < version_of(needs->cuda)) {
    throw environment_lacks(directory + ": the NVIDIA driver supports CUDA " + text_of(cuda->driver()) +
                            ", and the engine needs " + needs->cuda + "; install a newer driver");
  }
  check_provider(runtime, directory);
  return cuda;
}

std::shared_ptr<const InferenceSession> open_on_cuda(std::shared_ptr<const OnnxRuntime> runtime,
                                                     const std::string& directory, const engine::Graph& graph,
                                                     int threads, const std::string& trace) {
  const std::string path = storage::in_directory(directory, graph.file);
  for (const engine::TensorSpec& input : graph.inputs) {
    if (!input.optional) continue;
    // on CUDA ONNX Runtime computes with the default, whatever is given
    throw bad_input(path + ": " + input.name +
                    " has a default, which CUDA lets no call override; build the engine again");
  }
  SessionOptions options(runtime, threads);
  // weights get memory of their own: in the arena each would be rounded, and the rest of it lost
  options.set_entry("session.use_device_allocator_for_initializers", "1");
  if (!trace.empty()) runtime->check(runtime->api().EnableProfiling(options.get(), trace.c_str()));
  try {
    append_cuda(*runtime, options);
  } catch (const OnnxRuntimeFailure& failure) {
    throw environment_lacks(
        directory + ": " + cuda_provider + " cannot be used (" + failure.what() +
        "): install the CUDA and cuDNN that this onnxruntime-gpu needs, where the loader finds them");
  }
  try {
    auto session = std::make_shared<const InferenceSession>(runtime, path, options);
    check_interface(*session, graph, path);
    return session;
  } catch (const OnnxRuntimeFailure& failure) {
    throw bad_input(path + ": ONNX Runtime " + runtime->version() + " cannot load it (" + failure.what() + ")");
  }
}

}  // namespace l4
