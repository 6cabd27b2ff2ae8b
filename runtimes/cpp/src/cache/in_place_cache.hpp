// What caches have in common that stay where they are, in whichever memory.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "cache/kv_cache.hpp"
#include "onnxruntime/binding.hpp"
#include "onnxruntime/tensor_value.hpp"

namespace l4 {

// Caches of layouts "static" and "chunked": the decoder updates them in place, the same memory being its input and its
// output. In layout "chunked" those of chunked layers have the slots of one chunk, which every chunk fills from the
// first on.
//
// Slots after a row's length hold leftovers. Nobody reads them, and the next tokens overwrite them, so undoing a call
// needs nothing but a copy of a chunk that a call writes over before it is over.
class InPlaceCache : public KVCache {
 public:
  void make_room(std::int64_t) override {}
  void reset() override {}  // no slot is read before it is written
  std::uint64_t bytes() const override;

 protected:
  InPlaceCache(std::shared_ptr<const InferenceSession> session, const engine::Manifest& manifest, std::int64_t rows,
               std::int64_t capacity);

  // Bytes of one row in an array.
  std::size_t row_bytes(std::size_t array) const;
  // A binding for calls on one row, or on all of them. The caches are bound: of each array the slots of that row, or
  // all, from address `first` of the array on, in memory of that kind.
  template <typename First>
  Binding bound_caches(const OrtMemoryInfo* memory, const std::optional<std::size_t>& row, First&& first) const {
    Binding binding(session_);
    for (std::size_t index = 0; index < slots_.size(); ++index) {
      auto* data = static_cast<std::byte*>(first(index)) + row.value_or(0) * row_bytes(index);
      const auto value = tensor_at(*session_->runtime(), memory, data,
                                   {row ? 1 : rows_, spec_.heads, slots_[index], spec_.width}, type_.type, type_.bytes);
      binding.bind_input(spec_.past(index).c_str(), value.get());
      binding.bind_output(spec_.present(index).c_str(), value.get());
    }
    return binding;
  }

  std::shared_ptr<const InferenceSession> session_;
  CacheSpec spec_;
  ElementType type_;
  std::int64_t rows_, vocab_, width_bytes_;
  std::vector<std::int64_t> slots_;  // of each array [rows, heads, slots, width]
};

}  // namespace l4
