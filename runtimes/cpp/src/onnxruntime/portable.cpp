#include "onnxruntime/portable.hpp"

#include <cstring>
#include <new>
#include <utility>

#include "onnxruntime/element_type.hpp"
#include "onnxruntime/tensor_value.hpp"
#include "onnxruntime/weight_layout.hpp"
#include "storage/files.hpp"

namespace l4 {
namespace {

std::shared_ptr<std::byte[]> unpacked(const std::string& directory, const engine::PackedWeight& weight) {
  const std::string path = storage::in_directory(directory, weight.file);
  const storage::MappedFile file(storage::OpenedFile(path, "build the engine again"));
  const std::string_view bytes = file.bytes();
  const auto damaged = [&] {
    return bad_input(path + ": does not hold the packed weight " + in_quotes(weight.name) + "; build the engine again");
  };
  if (weight.shape.size() != 3 || weight.offset < 0) throw damaged();
  const std::int64_t experts = weight.shape[0], n = weight.shape[1], row = weight.shape[2];
  std::int64_t of_expert = 0, all = 0, end = 0;
  if (experts < 1 || n < 1 || row < 1 || __builtin_mul_overflow(n, row, &of_expert) ||
      __builtin_mul_overflow(experts, of_expert, &all) || __builtin_add_overflow(weight.offset, all, &end) ||
      static_cast<std::uint64_t>(end) > bytes.size() || !has_packed_order(n, row * 8 / weight.bits, weight.bits)) {
    throw damaged();
  }
  std::shared_ptr<std::byte[]> plain(new std::byte[static_cast<std::size_t>(all)]);
  const auto* packed = reinterpret_cast<const std::byte*>(bytes.data()) + weight.offset;
  for (std::int64_t at = 0; at < all; at += of_expert) {
    unpack_codes(packed + at, plain.get() + at, n, row * 8 / weight.bits, weight.bits);
  }
  return plain;
}

}  // namespace

std::shared_ptr<const InferenceSession> open_on_cpu(std::shared_ptr<const OnnxRuntime> runtime,
                                                    const std::string& directory, const std::string& file,
                                                    const SessionOptions& options,
                                                    const std::vector<engine::PackedWeight>& packed) {
  std::vector<std::shared_ptr<std::byte[]>> weights;
  std::vector<Owned<OrtValue>> values;
  std::vector<const char*> names;
  const Owned<OrtMemoryInfo> host = host_memory(*runtime);
  try {
    for (const engine::PackedWeight& weight : packed) {
      weights.push_back(unpacked(directory, weight));
      values.push_back(tensor_at(*runtime, host.get(), weights.back().get(), weight.shape,
                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1));
      names.push_back(weight.name.c_str());
    }
  } catch (const std::bad_alloc&) {
    throw bad_input(directory + ": too little memory for its experts' weights, which a CPU needs unpacked");
  }
  const std::string path = storage::in_directory(directory, file);
  try {
    if (!values.empty()) {
      std::vector<const OrtValue*> given;
      for (const auto& value : values) given.push_back(value.get());
      runtime->check(runtime->api().AddExternalInitializers(options.get(), names.data(), given.data(), given.size()));
    }
    auto session = std::make_shared<InferenceSession>(runtime, path, options);
    for (auto& weight : weights) session->keep(std::move(weight));
    return session;
  } catch (const OnnxRuntimeFailure& failure) {
    throw bad_input(path + ": ONNX Runtime " + runtime->version() + " cannot load it (" + failure.what() + ")");
  }
}

}  // namespace l4
