// The tokens that are added to a model's vocabulary, and how a text is cut at them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.hpp"
#include "text/vocabulary.hpp"

namespace l4::text {

class AddedVocabulary {
 public:
  struct Entry {
    AddedToken token;
    std::int32_t id;
    bool was_special;  // at any time: decoding skips it for ever
  };

  // Add tokens, or change the flags of those that are there. One that the vocabulary has keeps its id, others get the
  // next ones. Raises Refusal where such an id is the vocabulary's, and for a token of more than kLongest bytes.
  void add(const std::vector<AddedToken>& tokens, Vocabulary& vocabulary);

  const std::vector<Entry>& entries() const { return entries_; }
  const Entry* find(std::string_view content) const;  // nullptr where there is none

  // Part of a text: a token's id, or -1 and text that is no added token.
  struct Part {
    std::int32_t id;
    std::string_view text;
  };

  // Cut a text at added tokens. `special_as_text`: special ones are not cut out.
  std::vector<Part> cut(std::string_view text, bool special_as_text) const;

 private:
  static constexpr std::size_t kLongest = 4096;

  // One pass over a text: `ordinary` is found among the remaining text of the first pass.
  struct Pass {
    TokenFinder finder;
    std::vector<std::size_t> entries;  // by the finder's index
  };
  void cut_once(const Pass& pass, std::string_view text, bool special_as_text, std::vector<Part>& parts) const;

  std::vector<Entry> entries_;
  std::unordered_map<std::string, std::size_t> by_content_;
  std::array<Pass, 2> passes_;  // of tokens that are not `normalized`, and then of those that are
};

}  // namespace l4::text
