// What kinds of characters there are, as the Python package `tokenizers` sees them.
#pragma once

#include <cstdint>

namespace l4::text {

// Bits of a class.
constexpr std::uint8_t kLetter = 1;  // \p{L}
constexpr std::uint8_t kNumber = 2;  // \p{N}
constexpr std::uint8_t kSpace = 4;   // \s
constexpr std::uint8_t kUpper = 8;   // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
constexpr std::uint8_t kLower = 16;  // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
constexpr std::uint8_t kWord = 32;   // \w: an added token that must be a single word may not stand beside it

std::uint8_t class_of(char32_t point);

}  // namespace l4::text
