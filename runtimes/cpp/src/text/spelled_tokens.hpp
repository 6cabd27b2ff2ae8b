// Special tokens that a user's text spells out, kept as text: "<|eot|>" typed by a person ends no turn.
//
// It is what transformers does with `sanitize_control_tokens=True`: the tokens are marked in the messages, the template
// is rendered, and what is marked is encoded apart, by a tokenizer that knows no special tokens.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.hpp"
#include "text/added_tokens.hpp"
#include "text/added_vocabulary.hpp"

namespace l4::text {

class SpelledTokens {
 public:
  SpelledTokens() = default;
  // Those of the added tokens that are special, or among `control_tokens`.
  SpelledTokens(const std::vector<AddedVocabulary::Entry>& added, const std::vector<std::string>& control_tokens);

  // Mark the tokens in all texts of a JSON value; keys stay as they are. Marks are characters for private use, which
  // are removed from the texts first.
  json::Value mark(const json::Value& value) const;

  // A prompt that was rendered from marked values, cut at its marks. Of the parts, those with an odd index are marked
  // tokens, or empty for a mark that a template has separated from its token.
  std::vector<std::string_view> cut(std::string_view prompt) const;

  // The ids of the tokens that a text spells out, sorted.
  std::vector<std::int32_t> ids_in(std::string_view text) const;

 private:
  std::string mark(std::string_view text) const;

  TokenFinder finder_;
  std::vector<std::int32_t> ids_;  // by the finder's index
};

}  // namespace l4::text
