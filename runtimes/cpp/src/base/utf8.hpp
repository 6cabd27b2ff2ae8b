// UTF-8, as Python's codec has it: no surrogates, no overlong forms, nothing above U+10FFFF.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace l4::utf8 {

constexpr std::size_t npos = std::string_view::npos;

// Where the first byte stands that is no valid UTF-8; npos where all of it is valid.
std::size_t first_invalid(std::string_view text);

inline bool is_valid(std::string_view text) { return first_invalid(text) == npos; }

// The code point at `at` of a valid text; `at` moves behind it.
inline char32_t next(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(at);
  if (lead < 0x80) return at++, lead;
  const int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
  char32_t point = lead & (0x3F >> more);
  for (int i = 1; i <= more; ++i) point = point << 6 | (byte(at + i) & 0x3F);
  at += 1 + more;
  return point;
}

// The first `count` code points of a valid text.
inline std::string_view prefix(std::string_view text, std::size_t count) {
  std::size_t at = 0;
  for (; count != 0 && at < text.size(); --count) next(text, at);
  return text.substr(0, at);
}

// Bytes that the code point at `at` of a valid text takes.
inline std::size_t width(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

// Whether a code point shows as itself: no control, no separator but the space, no mark of direction or of format, and
// none that Unicode leaves to others. As Python's str.isprintable, but that what no version of Unicode has yet is
// printable.
bool is_printable(char32_t point);

// Add a code point that is no surrogate.
void append(std::string& text, char32_t point);

// The text with every maximal invalid part replaced by U+FFFD, as Python's errors="replace" does.
std::string repaired(std::string_view text);

}  // namespace l4::utf8
