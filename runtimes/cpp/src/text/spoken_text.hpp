// Text from tokens that come one at a time, up to the first stop string.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.hpp"

namespace l4::text {

// Decodes tokens as they come; the pieces of `push` and the `flush` after them make `decode` of all of the ids.
//
// A token may end within a character. Decoding shows the bytes of an unfinished character as one U+FFFD at the end, so
// that character, and no other, is held back. Only the last tokens are decoded again, so a push costs the same however
// long the text is: with one byte or more a token and at most three bytes of an unfinished character, four tokens would
// do.
class TextStream {
 public:
  explicit TextStream(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}

  std::string push(std::int32_t token);  // the text that is complete now; raises Error (L4_BAD_INPUT) for a negative id
  std::string flush();                   // what is held back, finished or not; then it starts anew

 private:
  static constexpr std::size_t kContext = 8;
  std::string decode() const { return tokenizer_->decode(ids_.data(), ids_.size()); }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::int32_t> ids_;
  std::size_t sent_ = 0;  // bytes of decode() that push has returned
};

// Raises Error (L4_BAD_INPUT) for stop strings that are empty, no UTF-8, or more than anybody needs.
void check_stop_strings(const std::vector<std::string>& stop_strings);

// The text of tokens, which ends before the first stop string.
//
// That is the one whose last character comes first, of those that end together the longest: where tokens begin and end
// makes no difference. Text that may be the beginning of a stop string is held back, and so is a character of which not
// all bytes have come. Special tokens are no text.
class SpokenText {
 public:
  // Raises as `check_stop_strings`.
  SpokenText(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stop_strings);

  std::string_view push(std::int32_t token);  // take a token; what is given now, good until the next call
  std::string_view flush();                   // no more tokens come: what was held back
  std::int32_t stopped() const { return stopped_; }  // index of the stop string that ended the text; -1: none has

 private:
  std::string_view take(const std::string& piece);

  TextStream stream_;
  std::vector<std::string> stops_;
  std::string held_, given_;
  std::int32_t stopped_ = -1;
};

}  // namespace l4::text
