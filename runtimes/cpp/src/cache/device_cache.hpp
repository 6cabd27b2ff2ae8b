// Caches of layouts "static" and "chunked" in a GPU's memory, and the decoder calls on them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/in_place_cache.hpp"
#include "onnxruntime/cuda_driver.hpp"

namespace l4 {

// A call sends its ids and lengths and fetches its logits; keys and values leave the device only when they are saved,
// forked or copied, or when there is no room for the copy of a chunk that is about to be written over.
class DeviceCache : public InPlaceCache {
 public:
  DeviceCache(std::shared_ptr<const InferenceSession> session, std::shared_ptr<const Cuda> cuda,
              const engine::Manifest& manifest, std::int64_t rows, std::int64_t capacity);

  void run(const Call& call) override;
  void put(std::size_t row, const RowArrays& tokens) override;
  void mark(const std::vector<LosingRow>& losing) override;
  void restore() override;
  void forget() noexcept override { marks_.clear(); }
  RowTokens tokens(std::size_t row, std::int64_t count, std::int64_t local_count) const override;

 private:
  // Where an input or output of calls lies that is no cache: on the device, but for an input that decides a shape. It
  // stays there for as long as it is large enough, so that steps of decoding find the same addresses; an input that is
  // as it was is not sent again.
  struct Place {
    std::string name;
    std::unique_ptr<CudaBuffer> buffer;  // none: on the host
    std::vector<std::byte> sent;         // what lies there; of what is on the host, itself
  };
  // What is bound for calls on one row, or on all of them, beside the caches.
  struct Bound {
    std::string name;
    Shape shape;
    std::uint64_t address;
  };
  struct Calls {
    explicit Calls(Binding made) : binding(std::move(made)) {}
    Binding binding;
    std::vector<Bound> bound;
  };
  // An array that keeps one chunk, as it was: on the device, or else on the host.
  struct Mark {
    std::size_t array;
    std::unique_ptr<CudaBuffer> copy;
    std::vector<std::byte> on_host;
  };

  Calls& calls_on(const std::optional<std::size_t>& row);
  Place& place(const char* name, std::size_t bytes, bool on_host);
  void send(Calls& calls, const char* name, const ElementType& type, const std::int64_t* shape, std::size_t rank,
            const void* values);
  void bind(Calls& calls, const Place& place, const ElementType& type, Shape shape, bool is_output);

  std::shared_ptr<const Cuda> cuda_;
  std::vector<std::unique_ptr<CudaBuffer>> buffers_;  // [rows, heads, slots, width]
  Owned<OrtMemoryInfo> host_, device_;
  std::vector<std::unique_ptr<Calls>> calls_;  // of all rows first, then of each
  std::vector<Place> places_;
  std::vector<std::int64_t> mask_;
  std::vector<Mark> marks_;
};

}  // namespace l4
