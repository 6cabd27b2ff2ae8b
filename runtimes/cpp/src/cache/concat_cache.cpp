#include "cache/concat_cache.hpp"

#include <algorithm>
#include <utility>

#include "cache/host_memory.hpp"

namespace l4 {
namespace {

// Names and values of one side of a run.
struct Side {
  std::vector<std::string> names;
  std::vector<Owned<OrtValue>> values;

  void add(std::string name, Owned<OrtValue> value) {
    names.push_back(std::move(name));
    values.push_back(std::move(value));
  }
  std::vector<const char*> texts() const {
    std::vector<const char*> texts;
    for (const std::string& name : names) texts.push_back(name.c_str());
    return texts;
  }
};

}  // namespace

ConcatCache::ConcatCache(std::shared_ptr<const InferenceSession> session, const engine::Manifest& manifest,
                         std::int64_t rows)
    : session_(std::move(session)), spec_(CacheSpec::of(manifest)), type_(element_type(spec_.dtype)), rows_(rows),
      vocab_(manifest.model.vocab_size), width_bytes_(spec_.width * type_.bytes),
      host_(host_memory(*session_->runtime())) {
  reset();
}

void ConcatCache::run(const Call& call) {
  const OnnxRuntime& runtime = *session_->runtime();
  const std::int64_t held = *std::max_element(call.lengths, call.lengths + call.rows);
  Side inputs;
  call.each_input(mask_, [&](const char* name, const ElementType& type, const std::int64_t* shape, std::size_t rank,
                             const void* values) {
    inputs.add(name, tensor_at(runtime, host_.get(), const_cast<void*>(values), Shape(shape, shape + rank), type.type,
                               type.bytes));
  });
  std::vector<std::shared_ptr<std::byte>> copies(arrays_.size());
  for (std::size_t index = 0; index < arrays_.size(); ++index) {
    inputs.add(spec_.past(index), past(arrays_[index], call, held, copies[index]));
  }
  Side outputs;
  outputs.add("logits", tensor_at(runtime, host_.get(), call.logits, {call.rows, call.positions(), vocab_},
                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, sizeof(float)));
  for (std::size_t index = 0; index < arrays_.size(); ++index) {
    outputs.add(spec_.present(index), Owned<OrtValue>(nullptr, runtime.api().ReleaseValue));
  }
  std::vector<const OrtValue*> in;
  for (const auto& value : inputs.values) in.push_back(value.get());
  std::vector<OrtValue*> out(outputs.values.size(), nullptr);
  out[0] = outputs.values[0].get();
  OrtStatus* status = runtime.api().Run(session_->get(), call.options->get(), inputs.texts().data(), in.data(),
                                        in.size(), outputs.texts().data(), out.size(), out.data());
  for (std::size_t index = 1; index < out.size(); ++index) outputs.values[index].reset(out[index]);
  runtime.check(status);

  std::vector<Array> next;
  for (std::size_t index = 0; index < arrays_.size(); ++index) {
    Array given = presented(std::move(outputs.values[index + 1]), call, held + call.tokens);
    const bool whole = !call.row || rows_ == 1;
    next.push_back(whole ? std::move(given) : grown(arrays_[index], std::max(arrays_[index].slots, given.slots)));
    if (!whole) {
      copy_tokens(view(given, 0, given.slots), first(next.back(), *call.row), next.back().slots, width_bytes_);
    }
  }
  arrays_ = std::move(next);
}

// The first `held` slots of the call's rows: where they lie if they are all, else as `copy`.
Owned<OrtValue> ConcatCache::past(const Array& array, const Call& call, std::int64_t held,
                                  std::shared_ptr<std::byte>& copy) const {
  const std::size_t row_of_call = call.row.value_or(0);
  const Shape shape{call.rows, spec_.heads, held, spec_.width};
  std::byte* data = first(array, row_of_call);
  if (array.slots != held) {
    copy = zeros(array_bytes(call.rows, spec_.heads, held, width_bytes_));
    for (std::int64_t row = 0; row < call.rows; ++row) {
      std::byte* to = copy.get() + row * spec_.heads * held * width_bytes_;
      copy_tokens(view(array, row_of_call + static_cast<std::size_t>(row), held), to, held, width_bytes_);
    }
    data = copy.get();
  }
  return tensor_at(*session_->runtime(), host_.get(), data, shape, type_.type, type_.bytes);
}

// What the decoder gave, which must have so many slots.
ConcatCache::Array ConcatCache::presented(Owned<OrtValue> value, const Call& call, std::int64_t slots) const {
  const OnnxRuntime& runtime = *session_->runtime();
  if (shape_of(runtime, value.get()) != Shape{call.rows, spec_.heads, slots, spec_.width}) {
    throw bad_input("the engine gave caches of another shape than its inputs have; build it again");
  }
  void* data = nullptr;
  runtime.check(runtime.api().GetTensorMutableData(value.get(), &data));
  const std::shared_ptr<OrtValue> shared(value.release(), runtime.api().ReleaseValue);
  // ONNX Runtime's arena must outlive what it gave
  struct Kept {
    std::shared_ptr<const InferenceSession> session;
    std::shared_ptr<OrtValue> value;
  };
  const auto kept = std::make_shared<Kept>(Kept{session_, shared});
  return {std::shared_ptr<std::byte>(kept, static_cast<std::byte*>(data)), slots};
}

// The same tokens in an array of at least as many slots.
ConcatCache::Array ConcatCache::grown(const Array& array, std::int64_t slots) const {
  const Array roomy = empty(slots);
  for (std::size_t row = 0; row < static_cast<std::size_t>(rows_); ++row) {
    copy_tokens(view(array, row, array.slots), first(roomy, row), slots, width_bytes_);
  }
  return roomy;
}

void ConcatCache::make_room(std::int64_t tokens) {
  std::vector<Array> roomy;
  for (const Array& array : arrays_) roomy.push_back(array.slots >= tokens ? array : grown(array, tokens));
  arrays_ = std::move(roomy);
}

void ConcatCache::put(std::size_t row, const RowArrays& tokens) {
  for (std::size_t index = 0; index < arrays_.size(); ++index) {
    const Array& array = arrays_[index];
    copy_tokens(tokens[index], first(array, row), array.slots, width_bytes_);
  }
}

void ConcatCache::reset() {
  std::vector<Array> none(spec_.names.size());
  for (Array& array : none) array = empty(0);
  arrays_ = std::move(none);
}

RowTokens ConcatCache::tokens(std::size_t row, std::int64_t count, std::int64_t) const {
  RowTokens tokens;
  for (const Array& array : arrays_) tokens.arrays.push_back(view(array, row, count));
  return tokens;
}

std::uint64_t ConcatCache::bytes() const {
  std::uint64_t bytes = 0;
  for (const Array& array : arrays_) bytes += array_bytes(rows_, spec_.heads, array.slots, width_bytes_);
  return bytes;
}

ConcatCache::Array ConcatCache::empty(std::int64_t slots) const {
  return {zeros(array_bytes(rows_, spec_.heads, slots, width_bytes_)), slots};
}

std::byte* ConcatCache::first(const Array& array, std::size_t row) const {
  return array.memory.get() + static_cast<std::int64_t>(row) * spec_.heads * array.slots * width_bytes_;
}

RowArray ConcatCache::view(const Array& array, std::size_t row, std::int64_t tokens) const {
  return {first(array, row), spec_.heads, tokens, spec_.width, array.slots * width_bytes_};
}

}  // namespace l4
