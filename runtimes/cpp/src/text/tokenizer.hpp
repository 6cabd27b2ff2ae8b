// Text to token ids and back: byte-level BPE, as the Python package `tokenizers` does it with a Llama's tokenizer.json.
//
// A text is searched for added tokens; what lies between them is cut into words by a pattern, and each word's bytes are
// merged into tokens. What cannot be done exactly as that package does it is refused when a tokenizer is opened.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.hpp"
#include "text/added_vocabulary.hpp"
#include "text/spelled_tokens.hpp"
#include "text/text_files.hpp"
#include "text/tokenizer_file.hpp"

namespace l4::text {

// Nothing of it changes after opening: any number of threads may use it.
class Tokenizer {
 public:
  // Open the tokenizer of a checkpoint or an engine; `files` is what `read_text_files` found in the directory.
  //
  // Raises Error: L4_BAD_INPUT for a tokenizer.json that is missing, damaged, or does what this class does not know;
  // L4_STORAGE for one that cannot be read.
  static std::shared_ptr<const Tokenizer> open(const std::string& directory, const TextFiles& files);

  // Raises Error (L4_BAD_INPUT) for added tokens that cannot be.
  Tokenizer(TokenizerFile file, const TextFiles& files);

  // The ids of a text. `add_special`: with what the tokenizer adds to one; `special_as_text`: special tokens that the
  // text spells out stay text. Raises Error (L4_BAD_INPUT) for text that is no UTF-8 or too long.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special, bool special_as_text = false) const;

  // The text of some ids: bytes that are no UTF-8 give U+FFFD, ids without a token nothing. Raises Error (L4_BAD_INPUT)
  // for a negative id, and for too many.
  std::string decode(const std::int32_t* ids, std::size_t count, bool skip_special = true) const;

  std::optional<std::int32_t> token_id(std::string_view token) const;  // of a token as it stands in the vocabulary
  std::optional<std::string> token(std::int32_t id) const;             // the other way round

  // Whether a token contributes to decoded text: it exists and is not a special one that is skipped. Raises Error
  // (L4_BAD_INPUT) for a negative id.
  bool has_text(std::int32_t id, bool skip_special = true) const;

  // The token with which tokenizer.json pads texts: a chat template sees it as `pad_token` unless a file names another.
  const std::optional<std::string>& pad_token() const { return pad_token_; }

  // Mark the special tokens in all texts of a JSON value; keys stay as they are. A template's prompt that was rendered
  // from marked values is encoded with `encode_marked`: special tokens that those spelled out stay text, those which
  // the template writes are tokens. Raises Error (L4_BAD_INPUT) where the tokenizer makes a special token of ordinary
  // text.
  json::Value mark(const json::Value& value) const { return spelled_.mark(value); }
  std::vector<std::int32_t> encode_marked(std::string_view prompt) const;

 private:
  static constexpr std::uint8_t kSkipped = 1, kTextless = 2;  // by `decode` with skip_special; to `has_text` with it

  bool has_flag(std::int32_t id, std::uint8_t flag) const {
    return static_cast<std::size_t>(id) < flags_.size() && (flags_[static_cast<std::size_t>(id)] & flag) != 0;
  }
  void encode_to(std::string_view text, bool find_added, std::vector<std::int32_t>& ids) const;
  void check_spelled(std::string_view text, const std::vector<std::int32_t>& ids, std::size_t from) const;

  Bpe model_;
  AddedVocabulary added_;
  std::vector<std::uint8_t> flags_;            // by id, as far as any has one
  std::vector<std::int32_t> before_, after_;  // what is added to a text
  std::optional<std::string> pad_token_;
  bool special_as_text_;
  SpelledTokens spelled_;
};

}  // namespace l4::text
