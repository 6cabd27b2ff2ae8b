// A request on its way through a row: a prompt, and what is generated for it.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "answer.hpp"
#include "library.hpp"
#include "metrics.hpp"

namespace service {

// An image in a prompt: its tokens stand at `start` up to `stop`.
struct Placed {
  std::size_t start, stop;
  Images images;  // this one alone
  std::string digest;
};

inline bool operator==(const Placed& a, const Placed& b) { return a.start == b.start && a.digest == b.digest; }

struct Prompt {
  Ids ids;
  std::vector<Placed> images;
};

struct Settings {
  l4_sampling sampling = L4_SAMPLING_DEFAULT;
  std::size_t max_new_tokens = 1;
  std::vector<std::string> stops;
  std::optional<std::size_t> likeliest;  // tokens told with each; none: no log probabilities
};

class Request {
 public:
  // Throws Failure for stop strings that are none.
  Request(const Model& model, Metrics& metrics, Prompt prompt, Settings settings, std::shared_ptr<Answer> answer);

  const Prompt& prompt() const { return prompt_; }
  Answer& answer() const { return *answer_; }
  bool is_unwanted() const { return answer_->is_unwanted; }
  bool has_begun() const { return tokens_ > 0; }
  std::int32_t last_token() const { return ids_.back(); }

  // Where a piece of the prompt ends that begins at `at`: `most` tokens on, and within no image; and the image in it.
  std::size_t piece_end(std::size_t at, std::size_t most, const l4_images** image) const;

  // Tokens of the prompt that need not be computed.
  void reuse(std::size_t count);

  // Choose a token for logits [vocab] and tell it; `is_full`: there is no room for another one. Whether it was the
  // last.
  bool choose(const float* logits, bool is_full);

  void cancel();
  void fail(const std::string& why);

 private:
  Chosen picked(const float* logits);
  void speak(Chosen& chosen);

  const Model& model_;
  Metrics& metrics_;
  Prompt prompt_;
  Settings settings_;
  std::shared_ptr<Answer> answer_;
  TextStream text_;
  Ids ids_;  // prompt and tokens so far
  std::size_t tokens_ = 0;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

}  // namespace service
