// Caches of layout "concat", which each call hands out one piece longer, in this machine's memory.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache/kv_cache.hpp"
#include "onnxruntime/inference_session.hpp"
#include "onnxruntime/tensor_value.hpp"

namespace l4 {

// Past in, present out; a single row is taken out of the batch at its own length and put back.
class ConcatCache : public KVCache {
 public:
  ConcatCache(std::shared_ptr<const InferenceSession> session, const engine::Manifest& manifest, std::int64_t rows);

  void run(const Call& call) override;
  void make_room(std::int64_t tokens) override;
  void put(std::size_t row, const RowArrays& tokens) override;
  // The arrays as they are: calls replace them and never write into them.
  void mark(const std::vector<LosingRow>&) override { marked_ = arrays_; }
  void restore() override { arrays_ = marked_; }
  void forget() noexcept override { marked_.clear(); }
  void reset() override;
  RowTokens tokens(std::size_t row, std::int64_t count, std::int64_t local_count) const override;
  std::uint64_t bytes() const override;

 private:
  // [rows, heads, slots, width], in memory of its own or of ONNX Runtime.
  struct Array {
    std::shared_ptr<std::byte> memory;
    std::int64_t slots;
  };

  Array empty(std::int64_t slots) const;
  Owned<OrtValue> past(const Array& array, const Call& call, std::int64_t held, std::shared_ptr<std::byte>& copy) const;
  Array presented(Owned<OrtValue> value, const Call& call, std::int64_t slots) const;
  Array grown(const Array& array, std::int64_t slots) const;
  std::byte* first(const Array& array, std::size_t row) const;  // slot
  RowArray view(const Array& array, std::size_t row, std::int64_t tokens) const;

  std::shared_ptr<const InferenceSession> session_;
  CacheSpec spec_;
  ElementType type_;
  std::int64_t rows_, vocab_, width_bytes_;
  Owned<OrtMemoryInfo> host_;
  std::vector<Array> arrays_, marked_;
  std::vector<std::int64_t> mask_;
};

}  // namespace l4
