// The chat templates and special tokens of a directory, found where transformers 5 finds them.
//
// transformers' tokenizer looks for chat templates in chat_template.jinja and additional_chat_templates/*.jinja, or
// else in tokenizer_config.json; its processor, for models that see images too, in processor_config.json and
// chat_template.json. The processor's own places count only where the tokenizer has no template. Special tokens stand
// in tokenizer_config.json, special_tokens_map.json and added_tokens.json.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/added_tokens.hpp"

namespace l4::text {

// A token that a file beside tokenizer.json adds.
struct AddedEntry {
  AddedToken token;
  std::optional<std::int64_t> id;  // the token is left out where another added token has it
  bool configured = false;         // its flags replace those that the token has
};

// In the order of the files, which is that of Python's dicts.
using NamedTexts = std::vector<std::pair<std::string, std::string>>;

struct TextFiles {
  NamedTexts chat_templates;   // sources by name: "default", "tool_use" (for prompts with tools), and others
  std::string templates_from;  // the file that they come from, for messages; empty where there are none
  NamedTexts special_tokens;   // what templates see as `bos_token`, `eos_token`, `image_token` and so on
  std::vector<AddedEntry> added;
  // Ordinary added tokens that count as special ones in a user's text; none: no file names any.
  std::optional<std::vector<std::string>> control_tokens;
  bool special_as_text = false;  // whether special tokens in a text are read as text
};

// Read what a checkpoint or an engine has beside its tokenizer.json. Raises Error: L4_BAD_INPUT for a file that is
// broken or too large, L4_STORAGE for one that cannot be read.
TextFiles read_text_files(const std::string& directory);

}  // namespace l4::text
