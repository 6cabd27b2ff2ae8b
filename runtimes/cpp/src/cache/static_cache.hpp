// Caches of layouts "static" and "chunked" in the memory of ONNX Runtime's CPU provider.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache/in_place_cache.hpp"

namespace l4 {

class StaticCache : public InPlaceCache {
 public:
  StaticCache(std::shared_ptr<const InferenceSession> session, const engine::Manifest& manifest, std::int64_t rows,
              std::int64_t capacity);

  void run(const Call& call) override;
  void put(std::size_t row, const RowArrays& tokens) override;
  void mark(const std::vector<LosingRow>& losing) override;
  void restore() override;
  void forget() noexcept override { marks_.clear(); }
  RowTokens tokens(std::size_t row, std::int64_t count, std::int64_t local_count) const override;

 private:
  // An input that is bound: a call of the same shape, as every step of one token is, is copied in its place.
  struct Input {
    std::string name;
    Shape shape;
    std::vector<std::byte> values;
  };
  // What is bound for calls on one row, or on all of them. Made once, with the caches.
  struct Calls {
    explicit Calls(Binding made) : binding(std::move(made)) {}
    Binding binding;
    std::vector<Input> inputs;
    float* logits = nullptr;
    std::int64_t positions = 0;
  };
  // A row's chunk, as it was, in each array that keeps one chunk.
  struct Mark {
    std::size_t row;
    std::int64_t slots;
    std::vector<std::vector<std::byte>> parts;
  };

  Calls& calls_on(const std::optional<std::size_t>& row);
  void feed(Calls& calls, const char* name, const ElementType& type, const std::int64_t* shape, std::size_t rank,
            const void* values);
  std::byte* slot(std::size_t array, std::size_t row) const;
  RowArray view(std::size_t array, std::size_t row, std::int64_t tokens) const;

  std::vector<std::shared_ptr<std::byte>> arrays_;  // [rows, heads, slots, width]
  Owned<OrtMemoryInfo> host_;
  std::vector<std::unique_ptr<Calls>> calls_;  // of all rows first, then of each
  std::vector<std::int64_t> mask_;
  std::vector<Mark> marks_;
};

}  // namespace l4
