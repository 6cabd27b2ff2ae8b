// Characters as Python's str methods see them: properties, letter case, white space.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "chat/character_table.hpp"

namespace l4::chat {

constexpr std::uint16_t kCased = kLower | kUpper | kTitle;

// The properties of a character, a union of kAlphabetic, kDecimal and so on.
std::uint16_t properties(char32_t point);

inline bool has(char32_t point, std::uint16_t property) { return (properties(point) & property) != 0; }

// What str.isspace, str.strip, str.split and the regular expression \s take for white space.
bool is_space(char32_t point);

// What str.splitlines takes for the end of a line.
bool is_line_end(char32_t point);

// Valid UTF-8 in other letters, with Python's full mappings: "ß".upper() is "SS", a sigma at the end of a word is "ς".
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string swapcase(std::string_view text);
std::string capitalized(std::string_view text);   // str.capitalize
std::string titled(std::string_view text);        // str.title

}  // namespace l4::chat
