#include "session/vision_tower.hpp"

#include <algorithm>
#include <cstring>

#include "onnxruntime/cpu_kernels.hpp"
#include "onnxruntime/element_type.hpp"
#include "onnxruntime/interface_check.hpp"
#include "onnxruntime/portable.hpp"
#include "onnxruntime/tensor_value.hpp"
#include "storage/files.hpp"

namespace l4 {
namespace {

constexpr std::size_t tiles_per_call = 17;  // more are more calls, with the same numbers

// Run the tower on the tiles of one call, and add the rows to `all`.
void add_rows(const InferenceSession& session, const float* tiles, const Shape& shape, std::int64_t width,
              std::int64_t element_bytes, const RunOptions& options, Features& all) {
  const OnnxRuntime& runtime = *session.runtime();
  const auto host = host_memory(runtime);
  const auto pixels = tensor_at(runtime, host.get(), const_cast<float*>(tiles), shape,
                                ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, sizeof(float));
  const char *input = "pixel_values", *output = "image_features";
  const OrtValue* given = pixels.get();
  OrtValue* rows = nullptr;
  runtime.check(runtime.api().Run(session.get(), options.get(), &input, &given, 1, &output, 1, &rows));
  const Owned<OrtValue> owned(rows, runtime.api().ReleaseValue);
  const Shape dims = shape_of(runtime, rows);
  if (dims.size() != 2 || dims[1] != width) {
    throw bad_input("the vision tower gives rows of another width; build it again");
  }
  void* data = nullptr;
  runtime.check(runtime.api().GetTensorMutableData(rows, &data));
  const auto* bytes = static_cast<const std::byte*>(data);
  all.bytes.insert(all.bytes.end(), bytes, bytes + dims[0] * width * element_bytes);
  all.rows += dims[0];
}

// Whether every value is finite: no exponent is all ones.
bool all_finite(const std::vector<std::byte>& bytes, const ElementType& type) {
  const auto finite = [&](auto pattern, auto exponent) {
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(pattern)) {
      std::memcpy(&pattern, bytes.data() + at, sizeof(pattern));
      if ((pattern & exponent) == exponent) return false;
    }
    return true;
  };
  switch (type.type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return finite(std::uint16_t{}, std::uint16_t{0x7C00});
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return finite(std::uint16_t{}, std::uint16_t{0x7F80});
    default:
      return finite(std::uint32_t{}, std::uint32_t{0x7F800000});
  }
}

}  // namespace

Features HostTower::features(const float* tiles, std::size_t count, const RunOptions& options) const {
  const auto session = loaded();
  const auto side = manifest_->vision->image_size;
  const engine::TensorSpec& output = manifest_->graphs.find(engine::kVision)->outputs[0];
  const ElementType& type = element_type(output.dtype);
  Features all;
  for (std::size_t first = 0; first < count; first += tiles_per_call) {
    const auto some = static_cast<std::int64_t>(std::min(tiles_per_call, count - first));
    const float* from = tiles + static_cast<std::int64_t>(first) * 3 * side * side;
    add_rows(*session, from, {some, 3, side, side}, manifest_->model.hidden_size, type.bytes, options, all);
  }
  if (!all_finite(all.bytes, type)) {
    throw bad_input(directory_ + ": the vision tower computes in " + *manifest_->precision.vision +
                    ", and the features of an image are beyond its range; build the engine with --vision-dtype fp32");
  }
  return all;
}

std::shared_ptr<const InferenceSession> HostTower::loaded() const {
  const std::lock_guard<std::mutex> locked(loading_);
  if (!session_) {
    const engine::Graph& graph = *manifest_->graphs.find(engine::kVision);
    const SessionOptions options(runtime_, threads_);
    if (manifest_->needs_cpu_kernels()) add_cpu_kernels(*runtime_, options);
    // a pattern would have the second call of a shape take its memory anew, beside what the first call keeps
    runtime_->check(runtime_->api().DisableMemPattern(options.get()));
    auto session = open_on_cpu(runtime_, directory_, graph.file, options);
    check_interface(*session, graph, storage::in_directory(directory_, graph.file));
    session_ = std::move(session);
  }
  return session_;
}

}  // namespace l4
