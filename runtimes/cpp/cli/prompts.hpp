// The prompts of l4run: from text, token ids, messages or a file of them, with images.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "l4export.hpp"
#include "options.hpp"
#include "picture.hpp"

namespace l4run {

// Token ids, with a placeholder <|image|> for each image.
struct Encoded {
  l4export::Ids ids;
  std::vector<PictureFile> pictures;
};

// The prompts that the options name, one unless there is --batch. `tokenizer` is NULL where the engine has none.
// Throws l4export::Error and l4::Error (L4_BAD_INPUT, L4_STORAGE).
std::vector<Encoded> read_prompts(const Options& options, const l4export::Tokenizer* tokenizer);

}  // namespace l4run
