// tokenizer.json, read in a stream: what a tokenizer does, or why it cannot be done here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.hpp"
#include "text/bpe.hpp"

namespace l4::text {

struct TokenizerFile {
  std::string path;
  Bpe model;
  std::vector<AddedToken> added;
  std::vector<std::int32_t> before, after;  // tokens that are added to a text, from the post-processor
  std::optional<std::string> pad_token;     // of "padding"; texts are neither padded nor cut
};

// Raises Error: L4_BAD_INPUT for a file that is missing, damaged, or says what is not known here; L4_STORAGE for one
// that cannot be read.
TokenizerFile read_tokenizer_file(const std::string& path);

// The same for the content of a file. Raises Error (L4_BAD_INPUT).
TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& path);

}  // namespace l4::text
