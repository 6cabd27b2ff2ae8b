#include "base/utf8.hpp"

#include <cstring>

namespace l4::utf8 {

namespace {

// Bytes of the well-formed sequence at `at`, 0 if there is none; `part` is how many bytes of a broken one belong
// together [Unicode 16, table 3-7, and "U+FFFD Substitution of Maximal Subparts"].
std::size_t sequence(std::string_view text, std::size_t at, std::size_t& part) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(at);
  part = 1;
  if (lead < 0x80) return 1;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const unsigned least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  if (byte(at + 1) < least || byte(at + 1) > most) return 0;
  for (part = 2; part < length; ++part) {
    if ((byte(at + part) & 0xC0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

std::size_t first_invalid(std::string_view text) {
  std::size_t at = 0, part = 0;
  while (at < text.size()) {
    // most of most texts: eight bytes of ASCII, and characters of two bytes
    std::uint64_t eight = ~std::uint64_t();
    if (at + 8 <= text.size()) std::memcpy(&eight, text.data() + at, 8);
    if ((eight & 0x8080808080808080u) == 0) {
      at += 8;
      continue;
    }
    const auto lead = static_cast<unsigned char>(text[at]);
    if (lead < 0x80) {
      ++at;
    } else if (lead >= 0xC2 && lead < 0xE0 && at + 1 < text.size() && (text[at + 1] & 0xC0) == 0x80) {
      at += 2;
    } else {
      const std::size_t length = sequence(text, at, part);
      if (length == 0) return at;
      at += length;
    }
  }
  return npos;
}

bool is_printable(char32_t point) {
  // [Unicode 16: categories Cc, Cf, Co, Cs, Zl, Zp, Zs, and noncharacters]
  static constexpr struct { char32_t first, last; } kHidden[] = {
      {0x0, 0x1F}, {0x7F, 0xA0}, {0xAD, 0xAD}, {0x600, 0x605}, {0x61C, 0x61C}, {0x6DD, 0x6DD}, {0x70F, 0x70F},
      {0x890, 0x891}, {0x8E2, 0x8E2}, {0x1680, 0x1680}, {0x180E, 0x180E}, {0x2000, 0x200F}, {0x2028, 0x202F},
      {0x205F, 0x206F}, {0x3000, 0x3000}, {0xD800, 0xF8FF}, {0xFDD0, 0xFDEF}, {0xFEFF, 0xFEFF}, {0xFFF9, 0xFFFB},
      {0x110BD, 0x110BD}, {0x110CD, 0x110CD}, {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A},
      {0xE0001, 0xE0001}, {0xE0020, 0xE007F}, {0xF0000, 0x10FFFF}};
  if ((point & 0xFFFE) == 0xFFFE) return false;
  for (const auto& range : kHidden) {
    if (point <= range.last) return point < range.first;
  }
  return true;
}

void append(std::string& text, char32_t point) {
  const auto add = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (point < 0x80) {
    add(point);
  } else if (point < 0x800) {
    add(0xC0 | point >> 6), add(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    add(0xE0 | point >> 12), add(0x80 | (point >> 6 & 0x3F)), add(0x80 | (point & 0x3F));
  } else {
    add(0xF0 | point >> 18), add(0x80 | (point >> 12 & 0x3F)), add(0x80 | (point >> 6 & 0x3F)),
        add(0x80 | (point & 0x3F));
  }
}

std::string repaired(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0, part = 0; at < text.size();) {
    const std::size_t length = sequence(text, at, part);
    if (length != 0) {
      out.append(text, at, length);
    } else {
      append(out, 0xFFFD);
    }
    at += length != 0 ? length : part;
  }
  return out;
}

}  // namespace l4::utf8
