#include "sampling/logprobs.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.hpp"
#include "sampling/sampler.hpp"
#include "sampling/summation.hpp"

namespace l4::sampling {

namespace {

// The `count` likeliest of scores. A heap of the best so far has the least of them on top; few scores are above it.
void likeliest(const std::vector<double>& scores, std::size_t count, std::vector<l4_logprob>& top) {
  const auto likelier = [](const l4_logprob& one, const l4_logprob& other) {
    return one.logprob > other.logprob || (one.logprob == other.logprob && one.token < other.token);
  };
  top.clear();
  for (std::size_t i = 0; i < scores.size() && count > 0; ++i) {
    const l4_logprob entry{static_cast<std::int32_t>(i), scores[i]};
    if (top.size() == count) {
      if (!likelier(entry, top.front())) continue;
      std::pop_heap(top.begin(), top.end(), likelier);
      top.pop_back();
    }
    top.push_back(entry);
    std::push_heap(top.begin(), top.end(), likelier);
  }
  std::sort_heap(top.begin(), top.end(), likelier);
}

}  // namespace

double Logprobs::of(const float* logits, std::size_t vocab, std::int32_t token, std::size_t count,
                    std::vector<l4_logprob>& top) {
  const double peak = checked_peak(logits, vocab, "logits", kCheckTheEngine);
  if (token < 0 || static_cast<std::size_t>(token) >= vocab) {
    throw bad_input("token is " + std::to_string(token) + ": give a whole number, 0 to " + std::to_string(vocab - 1));
  }
  if (count > vocab) {
    throw bad_input("top is " + std::to_string(count) + ": give a whole number, 0 to " + std::to_string(vocab));
  }
  scores_.resize(vocab);
  mass_.resize(vocab);
  for (std::size_t i = 0; i < vocab; ++i) scores_[i] = static_cast<double>(logits[i]) - peak;
  for (std::size_t i = 0; i < vocab; ++i) mass_[i] = std::exp(scores_[i]);
  const double all = std::log(pairwise_sum(mass_.data(), vocab));
  for (double& score : scores_) score -= all;
  likeliest(scores_, count, top);
  return scores_[token];
}

}  // namespace l4::sampling
