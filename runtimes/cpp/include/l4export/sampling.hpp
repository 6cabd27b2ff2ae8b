// How tokens are chosen from logits.
#ifndef L4EXPORT_SAMPLING_HPP
#define L4EXPORT_SAMPLING_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "l4export/error.hpp"

namespace l4export {

// How a row's tokens are chosen; see l4_sampling.
struct Sampling {
  // Changes the scores [vocab] of a row in place; `ids` are its tokens so far. What it throws ends the call that chose.
  using Processor = std::function<void(const std::int32_t* ids, std::size_t count, float* scores, std::size_t vocab)>;

  double temperature = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  std::int64_t top_k = 0;
  std::optional<std::uint64_t> seed = std::nullopt;  // none: one that nobody can foresee
  std::uint64_t stream = 0;
  Processor processor = nullptr;
};

namespace detail {

// A Sampling as the C ABI takes it; it must stay where it is while it is used.
class CSampling {
 public:
  explicit CSampling(Sampling sampling) : processor_(std::move(sampling.processor)) {
    c_.temperature = sampling.temperature;
    c_.top_p = sampling.top_p;
    c_.min_p = sampling.min_p;
    c_.repetition_penalty = sampling.repetition_penalty;
    c_.top_k = sampling.top_k;
    c_.has_seed = sampling.seed.has_value();
    c_.seed = sampling.seed.value_or(0);
    c_.stream = sampling.stream;
    if (processor_) c_.processor = &CSampling::process, c_.user = this;
  }
  CSampling(const CSampling&) = delete;
  CSampling& operator=(const CSampling&) = delete;

  const l4_sampling* c() const { return &c_; }

  // Throw what the processor has thrown.
  void rethrow() {
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  }

 private:
  static int process(void* user, const std::int32_t* ids, std::size_t count, float* scores,
                     std::size_t vocab) noexcept {
    auto& self = *static_cast<CSampling*>(user);
    try {
      self.processor_(ids, count, scores, vocab);
      return 0;
    } catch (...) {
      self.thrown_ = std::current_exception();
      return 1;
    }
  }

  l4_sampling c_ = L4_SAMPLING_DEFAULT;
  Sampling::Processor processor_;
  std::exception_ptr thrown_;
};

}  // namespace detail

// What generation_config.json of an engine says of sampling, greedy if nothing.
inline Sampling recommended_sampling(const std::string& directory) {
  l4_sampling found = L4_SAMPLING_DEFAULT;
  check(l4_recommended_sampling(directory.c_str(), &found));
  Sampling sampling;
  sampling.temperature = found.temperature;
  sampling.top_p = found.top_p;
  sampling.min_p = found.min_p;
  sampling.repetition_penalty = found.repetition_penalty;
  sampling.top_k = found.top_k;
  return sampling;
}

// A seed that nobody can foresee.
inline std::uint64_t fresh_seed() {
  std::uint64_t seed = 0;
  check(l4_fresh_seed(&seed));
  return seed;
}

// One Sampling for `rows` rows, which share its seed and draw from streams 0, 1, 2, ... of it: what the Python runtime
// does with one Sampling for a batch. Rows with settings of their own draw from stream 0, as they do alone.
inline std::vector<Sampling> sampling_of_rows(Sampling sampling, std::size_t rows) {
  if (!sampling.seed) sampling.seed = fresh_seed();
  std::vector<Sampling> each(rows, sampling);
  for (std::size_t row = 0; row < rows; ++row) each[row].stream = row;
  return each;
}

// Choose a token for logits [vocab]; `ids` are the row's tokens so far. Without a seed it is 0.
inline std::int32_t sample(const float* logits, std::size_t vocab, const Sampling& sampling, std::uint64_t draw,
                           const Ids& ids = {}) {
  detail::CSampling settings(sampling);
  std::int32_t token = 0;
  const l4_status status = l4_sample(logits, vocab, settings.c(), draw, ids.data(), ids.size(), &token);
  settings.rethrow();
  check(status);
  return token;
}

struct Logprobs {
  double logprob;                // of the token that was asked for
  std::vector<l4_logprob> top;  // the likeliest ones, likeliest first
};

inline Logprobs logprobs(const float* logits, std::size_t vocab, std::int32_t token, std::size_t top) {
  Logprobs found{0, std::vector<l4_logprob>(top)};
  check(l4_logprobs(logits, vocab, token, top, &found.logprob, found.top.data()));
  return found;
}

}  // namespace l4export

#endif
