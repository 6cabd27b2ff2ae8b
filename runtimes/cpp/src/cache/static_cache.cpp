#include "cache/static_cache.hpp"

#include <algorithm>
#include <cstring>

#include "cache/host_memory.hpp"

namespace l4 {

StaticCache::StaticCache(std::shared_ptr<const InferenceSession> session, const engine::Manifest& manifest,
                         std::int64_t rows, std::int64_t capacity)
    : InPlaceCache(std::move(session), manifest, rows, capacity), host_(host_memory(*session_->runtime())),
      calls_(static_cast<std::size_t>(rows) + 1) {
  for (const std::int64_t slots : slots_) {
    arrays_.push_back(zeros(array_bytes(rows, spec_.heads, slots, width_bytes_)));
  }
}

void StaticCache::run(const Call& call) {
  Calls& calls = calls_on(call.row);
  call.each_input(mask_, [&](const char* name, const ElementType& type, const std::int64_t* shape, std::size_t rank,
                             const void* values) { feed(calls, name, type, shape, rank, values); });
  if (calls.logits != call.logits || calls.positions != call.positions()) {
    calls.logits = nullptr;  // a failure must not leave it as bound
    const auto value = tensor_at(*session_->runtime(), host_.get(), call.logits, {call.rows, call.positions(), vocab_},
                                 ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, sizeof(float));
    calls.binding.bind_output("logits", value.get());
    calls.logits = call.logits;
    calls.positions = call.positions();
  }
  calls.binding.run(*call.options);
}

void StaticCache::feed(Calls& calls, const char* name, const ElementType& type, const std::int64_t* shape,
                       std::size_t rank, const void* values) {
  auto input =
      std::find_if(calls.inputs.begin(), calls.inputs.end(), [&](const Input& each) { return each.name == name; });
  if (input == calls.inputs.end()) input = calls.inputs.insert(input, Input{name, {-1}, {}});
  const std::size_t bytes = static_cast<std::size_t>(elements(shape, rank) * type.bytes);
  if (!std::equal(shape, shape + rank, input->shape.begin(), input->shape.end())) {
    input->shape = {-1};  // a failure must not leave it as bound
    input->values.resize(std::max<std::size_t>(bytes, 1));
    const Shape bound(shape, shape + rank);
    const auto value = tensor_at(*session_->runtime(), host_.get(), input->values.data(), bound, type.type, type.bytes);
    calls.binding.bind_input(name, value.get());
    input->shape = bound;
  }
  std::memcpy(input->values.data(), values, bytes);
}

StaticCache::Calls& StaticCache::calls_on(const std::optional<std::size_t>& row) {
  std::unique_ptr<Calls>& calls = calls_[row ? *row + 1 : 0];
  if (!calls) {
    const auto first = [this](std::size_t array) { return arrays_[array].get(); };
    calls = std::make_unique<Calls>(bound_caches(host_.get(), row, first));
  }
  return *calls;
}

void StaticCache::put(std::size_t row, const RowArrays& tokens) {
  for (std::size_t index = 0; index < arrays_.size(); ++index) {
    copy_tokens(tokens[index], slot(index, row), slots_[index], width_bytes_);
  }
}

void StaticCache::mark(const std::vector<LosingRow>& losing) {
  marks_.clear();
  for (const auto& [row, slots] : losing) {
    Mark mark{row, slots, {}};
    for (std::size_t index = 0; index < arrays_.size(); ++index) {
      if (!spec_.local[index]) continue;
      mark.parts.emplace_back(static_cast<std::size_t>(spec_.heads * slots * width_bytes_));
      copy_tokens(view(index, row, slots), mark.parts.back().data(), slots, width_bytes_);
    }
    marks_.push_back(std::move(mark));
  }
}

void StaticCache::restore() {
  for (const Mark& mark : marks_) {
    auto part = mark.parts.begin();
    for (std::size_t index = 0; index < arrays_.size(); ++index) {
      if (!spec_.local[index]) continue;
      const RowArray was{part->data(), spec_.heads, mark.slots, spec_.width, mark.slots * width_bytes_};
      copy_tokens(was, slot(index, mark.row), slots_[index], width_bytes_);
      ++part;
    }
  }
  marks_.clear();
}

RowTokens StaticCache::tokens(std::size_t row, std::int64_t count, std::int64_t local_count) const {
  RowTokens tokens;
  for (std::size_t index = 0; index < arrays_.size(); ++index) {
    tokens.arrays.push_back(view(index, row, spec_.local[index] ? local_count : count));
  }
  return tokens;
}

std::byte* StaticCache::slot(std::size_t array, std::size_t row) const {
  return arrays_[array].get() + row * row_bytes(array);
}

RowArray StaticCache::view(std::size_t array, std::size_t row, std::int64_t tokens) const {
  return {slot(array, row), spec_.heads, tokens, spec_.width, slots_[array] * width_bytes_};
}

}  // namespace l4
