// Bytes as tokenizer.json spells them: the characters that stand for bytes in a byte-level vocabulary.
//
// It is the table of GPT-2: a byte that can be printed stands for itself, the n-th one that cannot for character 256 +
// n.
#pragma once

#include <string>
#include <string_view>

namespace l4::text {

// Add the bytes that a valid text spells to `bytes`; false where one of its characters stands for no byte (then some
// may have been added).
bool spelled_bytes(std::string_view spelled, std::string& bytes);

// The characters that stand for some bytes.
std::string spelling_of(std::string_view bytes);

}  // namespace l4::text
