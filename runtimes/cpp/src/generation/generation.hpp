// Continuing prompts, one token a step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "generation/generated_row.hpp"
#include "l4export.h"
#include "session/session.hpp"
#include "text/tokenizer.hpp"

namespace l4::generation {

// The prompt of one row; without ids the row takes no part.
struct Prompt {
  const std::int32_t* ids;
  std::size_t count;
  Images images;
  l4_sampling sampling;
};

struct Options {
  std::int64_t max_new_tokens;
  std::vector<std::int32_t> stop_tokens;
  bool has_stop_tokens;                             // else those of the model
  std::shared_ptr<const text::Tokenizer> tokenizer;  // NULL: ids alone
  std::vector<std::string> stop_strings;
  std::int64_t logprobs;  // -1: none
};

// Prompts that are continued in a session, and what has been said. The session holds the prompts and every token that
// was chosen but the last of each row, which is fed when the next one is asked for. Whoever calls a method holds a
// `Session::Call` of the session.
class Generation {
 public:
  // Checks everything and computes nothing. Raises Error (L4_BAD_INPUT).
  Generation(std::shared_ptr<Session> session, const std::vector<Prompt>& prompts, const Options& options);

  const std::shared_ptr<Session>& session() const { return session_; }

  // Choose a token for every row that runs; none when all have ended. They are good until the next call.
  //
  // A step that fails leaves everything as it was, so it can be asked for again. Raises Error: L4_BAD_INPUT where the
  // session was changed meanwhile, and as `Session::append` and `Sampler`; L4_CANCELLED.
  const std::vector<l4_token>& step(const Session::Call& call);

  // No more tokens of a row. Raises Error (L4_BAD_INPUT) where there is no such row.
  void stop(std::int32_t row);

 private:
  void feed();
  const char* reason(std::size_t row) const;

  std::shared_ptr<Session> session_;
  NewTokens prompts_;
  std::vector<GeneratedRow> rows_;
  std::vector<std::int32_t> stop_tokens_;
  std::int64_t max_new_tokens_;
  Choosing choosing_;
  std::uint64_t version_;
  bool is_begun_ = false;
  const float* logits_ = nullptr;  // [rows, vocab], of tokens that are fed; NULL: some must be fed
  std::size_t vocab_ = 0;
  std::vector<std::int32_t> fed_;  // [rows], what a step feeds
  std::vector<l4_token> tokens_;
};

}  // namespace l4::generation
