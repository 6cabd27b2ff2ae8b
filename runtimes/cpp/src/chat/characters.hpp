// Characters as Python's str methods see them: properties, letter case, white space.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace l4::chat {

// Properties of a character.
constexpr std::uint16_t kAlphabetic = 1;   // str.isalpha
constexpr std::uint16_t kDecimal = 2;      // str.isdecimal
constexpr std::uint16_t kDigit = 4;        // str.isdigit
constexpr std::uint16_t kNumeric = 8;      // str.isnumeric
constexpr std::uint16_t kLower = 16;       // str.islower
constexpr std::uint16_t kUpper = 32;       // str.isupper
constexpr std::uint16_t kTitle = 64;       // str.istitle, and not upper
constexpr std::uint16_t kPrintable = 128;  // str.isprintable
constexpr std::uint16_t kIgnorable = 256;  // does not decide whether a sigma ends a word

constexpr std::uint16_t kCased = kLower | kUpper | kTitle;

// All properties of a character.
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
