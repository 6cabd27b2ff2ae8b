// What has been generated of one row.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "l4export.h"
#include "sampling/logprobs.hpp"
#include "sampling/sampler.hpp"
#include "text/spoken_text.hpp"

namespace l4::generation {

// What the rows of a generation share: memory for choosing, and how many of the likeliest tokens are told.
struct Choosing {
  sampling::Workspace workspace;
  sampling::Logprobs logprobs;
  std::optional<std::size_t> likeliest;  // none: no log probabilities
};

// The answer of one row, which grows while it is generated.
class GeneratedRow {
 public:
  // `ids`: what the row's session holds, then its prompt; `runs`: whether it has a prompt, and so takes part; `spoken`:
  // its text, where that is asked for.
  GeneratedRow(std::vector<std::int32_t> ids, bool runs, const l4_sampling& settings,
               std::optional<text::SpokenText> spoken);

  bool runs() const { return runs_ && finish_reason_ == nullptr; }  // whether another token of it will be chosen
  std::int32_t last() const { return ids_.back(); }
  std::int64_t count() const { return static_cast<std::int64_t>(said_); }  // of tokens that were chosen

  // Choose a token for logits [vocab], with its log probabilities if they are asked for; nothing changes yet.
  // Raises Error (L4_BAD_INPUT) as Sampler.
  void pick(const float* logits, std::size_t vocab, Choosing& choosing);
  std::int32_t picked() const { return picked_; }

  // Add the token that was picked; `ends` says why it is the last one, unless a stop string says so first.
  void take(const char* ends);

  void stop() { runs_ = false; }  // the caller wants no more

  // The token that was taken last, with what it has completed; good until the next call.
  l4_token told(std::int32_t row) const;

 private:
  std::vector<std::int32_t> ids_;  // of session, prompt and answer
  std::size_t said_ = 0;
  bool runs_;
  const char* finish_reason_ = nullptr;
  sampling::Sampler sampler_;
  std::optional<text::SpokenText> spoken_;
  std::string text_;  // that the last token completed
  std::int32_t picked_ = 0;
  double logprob_ = 0;
  std::vector<l4_logprob> top_;
};

}  // namespace l4::generation
