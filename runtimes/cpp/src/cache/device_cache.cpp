#include "cache/device_cache.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>

#include "cache/host_memory.hpp"

namespace l4 {
namespace {

constexpr ElementType float32{"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4};
constexpr const char* on_the_host = "logits_to_keep";  // it decides a shape

Owned<OrtMemoryInfo> device_memory(const OnnxRuntime& runtime) {
  OrtMemoryInfo* info = nullptr;
  runtime.check(runtime.api().CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &info));
  return {info, runtime.api().ReleaseMemoryInfo};
}

}  // namespace

DeviceCache::DeviceCache(std::shared_ptr<const InferenceSession> session, std::shared_ptr<const Cuda> cuda,
                         const engine::Manifest& manifest, std::int64_t rows, std::int64_t capacity)
    : InPlaceCache(std::move(session), manifest, rows, capacity), cuda_(std::move(cuda)),
      host_(host_memory(*session_->runtime())), device_(device_memory(*session_->runtime())),
      calls_(static_cast<std::size_t>(rows) + 1) {
  if (manifest.kv_layout == "concat") {
    throw bad_input("caches of layout concat do not stay in place; build the engine again with --kv-layout static");
  }
  for (const std::int64_t slots : slots_) {
    buffers_.push_back(std::make_unique<CudaBuffer>(cuda_, array_bytes(rows, spec_.heads, slots, width_bytes_)));
  }
}

void DeviceCache::run(const Call& given) {
  Call call = given;
  if (call.tokens == 1) call.last_only = 1;  // the same logits, and one kind of step
  Calls& calls = calls_on(call.row);
  call.each_input(mask_, [&](const char* name, const ElementType& type, const std::int64_t* shape, std::size_t rank,
                             const void* values) { send(calls, name, type, shape, rank, values); });
  const Shape shape{call.rows, call.positions(), vocab_};
  const auto bytes = static_cast<std::size_t>(elements(shape.data(), shape.size())) * sizeof(float);
  const Place& logits = place("logits", bytes, false);
  bind(calls, logits, float32, shape, true);
  try {
    calls.binding.run(*call.options);
  } catch (const OnnxRuntimeFailure& failure) {
    if (!failure.out_of_memory()) throw;
    throw bad_input(std::string("the GPU has no memory left for it; feed shorter prompts or end another session (") +
                    printable(failure.what(), 200) + ")");
  }
  logits.buffer->read(call.logits, bytes);
}

// Send the value of an input, and bind it where it lies.
void DeviceCache::send(Calls& calls, const char* name, const ElementType& type, const std::int64_t* shape,
                       std::size_t rank, const void* values) {
  const std::size_t bytes = static_cast<std::size_t>(elements(shape, rank) * type.bytes);
  Place& to = place(name, std::max<std::size_t>(bytes, 1), std::string_view(name) == on_the_host);
  if (to.sent.size() != bytes || (bytes != 0 && std::memcmp(to.sent.data(), values, bytes) != 0)) {
    const auto* from = static_cast<const std::byte*>(values);
    if (to.buffer) {
      to.sent.clear();  // a failure must not leave it as sent
      to.buffer->write(from, bytes);
      to.sent.assign(from, from + bytes);
    } else {
      std::memcpy(to.sent.data(), from, bytes);  // it has one shape, and is bound where it lies
    }
  }
  bind(calls, to, type, Shape(shape, shape + rank), false);
}

DeviceCache::Place& DeviceCache::place(const char* name, std::size_t bytes, bool on_host) {
  auto found = std::find_if(places_.begin(), places_.end(), [&](const Place& each) { return each.name == name; });
  if (found == places_.end()) found = places_.insert(found, Place{name, nullptr, {}});
  if (on_host) {
    if (found->sent.empty()) found->sent.resize(bytes);
  } else if (!found->buffer || found->buffer->bytes() < bytes) {
    found->buffer.reset();  // freed before the next is allocated
    found->sent.clear();
    found->buffer = std::make_unique<CudaBuffer>(cuda_, bytes);
  }
  return *found;
}

void DeviceCache::bind(Calls& calls, const Place& place, const ElementType& type, Shape shape, bool is_output) {
  const std::uint64_t address =
      place.buffer ? place.buffer->address() : reinterpret_cast<std::uint64_t>(place.sent.data());
  auto bound =
      std::find_if(calls.bound.begin(), calls.bound.end(), [&](const Bound& each) { return each.name == place.name; });
  if (bound == calls.bound.end()) bound = calls.bound.insert(bound, Bound{place.name, {-1}, 0});
  if (bound->address == address && bound->shape == shape) return;
  bound->address = 0;  // a failure must not leave it as bound
  const auto value = tensor_at(*session_->runtime(), place.buffer ? device_.get() : host_.get(),
                               reinterpret_cast<void*>(address), shape, type.type, type.bytes);
  if (is_output) {
    calls.binding.bind_output(place.name.c_str(), value.get());
  } else {
    calls.binding.bind_input(place.name.c_str(), value.get());
  }
  bound->shape = std::move(shape);
  bound->address = address;
}

DeviceCache::Calls& DeviceCache::calls_on(const std::optional<std::size_t>& row) {
  std::unique_ptr<Calls>& calls = calls_[row ? *row + 1 : 0];
  if (!calls) {
    const auto first = [this](std::size_t array) { return reinterpret_cast<void*>(buffers_[array]->address()); };
    calls = std::make_unique<Calls>(bound_caches(device_.get(), row, first));
  }
  return *calls;
}

void DeviceCache::put(std::size_t row, const RowArrays& tokens) {
  for (std::size_t index = 0; index < buffers_.size(); ++index) {
    const RowArray& from = tokens[index];
    for (std::int64_t head = 0; head < from.heads; ++head) {
      const auto at = row * row_bytes(index) + static_cast<std::size_t>(head * slots_[index] * width_bytes_);
      buffers_[index]->write(from.data + head * from.head_stride_bytes,
                             static_cast<std::size_t>(from.tokens * width_bytes_), at);
    }
  }
}

void DeviceCache::mark(const std::vector<LosingRow>& losing) {
  marks_.clear();
  if (std::none_of(losing.begin(), losing.end(), [](const LosingRow& each) { return each.second != 0; })) return;
  for (std::size_t index = 0; index < buffers_.size(); ++index) {
    if (!spec_.local[index]) continue;
    Mark mark{index, nullptr, {}};
    try {
      mark.copy = std::make_unique<CudaBuffer>(cuda_, buffers_[index]->bytes());
      mark.copy->take(*buffers_[index]);
    } catch (const std::bad_alloc&) {
      mark.on_host.resize(buffers_[index]->bytes());
      buffers_[index]->read(mark.on_host.data(), mark.on_host.size());
    }
    marks_.push_back(std::move(mark));
  }
}

void DeviceCache::restore() {
  for (const Mark& mark : marks_) {
    if (mark.copy) {
      buffers_[mark.array]->take(*mark.copy);
    } else {
      buffers_[mark.array]->write(mark.on_host.data(), mark.on_host.size());
    }
  }
  marks_.clear();
}

RowTokens DeviceCache::tokens(std::size_t row, std::int64_t count, std::int64_t local_count) const {
  RowTokens tokens;
  for (std::size_t index = 0; index < buffers_.size(); ++index) {
    const std::size_t bytes = row_bytes(index);
    std::unique_ptr<std::byte[]> memory(new std::byte[bytes]);
    buffers_[index]->read(memory.get(), bytes, row * bytes);
    tokens.arrays.push_back({memory.get(), spec_.heads, spec_.local[index] ? local_count : count, spec_.width,
                             slots_[index] * width_bytes_});
    tokens.memory.push_back(std::move(memory));
  }
  return tokens;
}

}  // namespace l4
