// What l4run prints: text as it comes, JSON, and figures.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.hpp"
#include "l4export.hpp"

namespace l4run {

// Write to standard output at once. Throws OutputClosed where nobody reads it, l4export::Error (L4_STORAGE) where it
// fails.
void print(std::string_view text);

struct OutputClosed {};

// The answer of one row, as it has grown.
struct Answer {
  l4export::Ids token_ids;
  std::string text;
  std::string finish_reason;
  l4::json::Array logprobs;

  void add(const l4export::Token& token, bool with_logprobs);
  // "token_ids", "text" (null without a tokenizer), "finish_reason" and, where they were asked for, "logprobs".
  l4::json::Object to_json(bool has_text, bool with_logprobs) const;
};

// How fast an engine generated. Seconds count from the making of this.
class Record {
 public:
  explicit Record(double load_seconds) : load_seconds_(load_seconds) {}

  void prompt(std::size_t tokens) { prompt_tokens_ += tokens; }
  void token();

  // The figures of a JSON document; a speed is null where no time passed or nothing was decoded. Tokens of all rows.
  void add_to(l4::json::Object& document) const;
  // The same in words.
  std::string sentence(const std::string& finish_reason) const;

 private:
  l4::json::Object figures() const;

  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
  double load_seconds_, first_seconds_ = 0, last_seconds_ = 0;
  std::size_t prompt_tokens_ = 0, new_tokens_ = 0;
};

}  // namespace l4run
