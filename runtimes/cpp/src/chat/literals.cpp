#include "chat/literals.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <optional>
#include <utility>

#include "base/decimal.hpp"
#include "base/utf8.hpp"
#include "chat/failure.hpp"

namespace l4::chat {

namespace {

int hex_digit(char c) {
  return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// Behind digits of a base with single "_" between them; `at` itself where there is none.
template <typename Digit>
std::size_t behind_digits(std::string_view source, std::size_t at, bool underscore_first, Digit&& is_one) {
  for (bool first = true;; first = false) {
    std::size_t digit = at;
    if ((!first || underscore_first) && digit < source.size() && source[digit] == '_') ++digit;
    if (digit >= source.size() || !is_one(source[digit])) return at;
    at = digit + 1;
  }
}

// Behind a floating-point literal; nothing where there is none.
std::optional<std::size_t> behind_fraction(std::string_view source, std::size_t at) {
  if (at > 0 && source[at - 1] == '.') return std::nullopt;
  const std::size_t whole = behind_digits(source, at, false, is_digit);
  std::size_t fraction = whole;
  if (whole < source.size() && source[whole] == '.') {
    fraction = behind_digits(source, whole + 1, false, is_digit);
    if (fraction == whole + 1) fraction = whole;
  }
  if (fraction < source.size() && (source[fraction] == 'e' || source[fraction] == 'E')) {
    std::size_t exponent = fraction + 1;
    if (exponent < source.size() && (source[exponent] == '-' || source[exponent] == '+')) ++exponent;
    const std::size_t behind = behind_digits(source, exponent, false, is_digit);
    if (behind != exponent) return behind;
  }
  return fraction == whole ? std::nullopt : std::optional<std::size_t>(fraction);
}

// Behind an integer literal, and its base.
std::pair<std::size_t, int> behind_integer(std::string_view source, std::size_t at) {
  if (source[at] != '0') return {behind_digits(source, at, false, is_digit), 10};
  const char kind = at + 1 < source.size() ? static_cast<char>(source[at + 1] | 0x20) : '\0';
  const int base = kind == 'b' ? 2 : kind == 'o' ? 8 : kind == 'x' ? 16 : 10;
  if (base != 10) {
    const auto is_one = [&](char c) { return hex_digit(c) >= 0 && hex_digit(c) < base; };
    const std::size_t behind = behind_digits(source, at + 2, true, is_one);
    if (behind != at + 2) return {behind, base};
  }
  return {behind_digits(source, at, false, [](char c) { return c == '0'; }), 10};
}

}  // namespace

NumberLiteral number_at(std::string_view source, std::size_t at) {
  const std::optional<std::size_t> fraction = behind_fraction(source, at);
  const auto [behind, base] = fraction ? std::pair{*fraction, 10} : behind_integer(source, at);
  NumberLiteral literal{behind, !fraction};
  std::string digits(source.substr(at, behind - at));
  digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
  if (fraction) {
    literal.number = decimal(digits);
    return literal;
  }
  const char* begin = digits.data() + (base == 10 ? 0 : 2);
  if (std::from_chars(begin, digits.data() + digits.size(), literal.integer, base).ec != std::errc()) {
    throw Unsupported("an integer beyond 64 bits");
  }
  return literal;
}

std::string unescaped(std::string_view literal) {
  std::string ascii;
  char escape[12];
  for (std::size_t at = 0; at < literal.size();) {
    const char32_t point = utf8::next(literal, at);
    if (point < 0x80) {
      ascii.push_back(static_cast<char>(point));
    } else {
      const char* form = point < 0x100 ? "\\x%02x" : point < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escape, sizeof escape, form, static_cast<unsigned>(point));
      ascii += escape;
    }
  }
  std::string out;
  for (std::size_t at = 0; at < ascii.size();) {
    if (ascii[at] != '\\' || at + 1 == ascii.size()) {
      out.push_back(ascii[at++]);
      continue;
    }
    const char kind = ascii[at + 1];
    at += 2;
    static constexpr std::string_view kKinds = "\\'\"abfnrtv", kMeant = "\\'\"\a\b\f\n\r\t\v";
    if (kind == '\n') continue;
    if (const std::size_t plain = kKinds.find(kind); plain != std::string_view::npos) {
      out.push_back(kMeant[plain]);
    } else if (kind >= '0' && kind <= '7') {
      char32_t point = 0;
      const std::size_t most = --at + 3;
      for (; at < ascii.size() && at < most && ascii[at] >= '0' && ascii[at] <= '7'; ++at) {
        point = point * 8 + static_cast<char32_t>(ascii[at] - '0');
      }
      utf8::append(out, point);
    } else if (kind == 'x' || kind == 'u' || kind == 'U') {
      const std::size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
      char32_t point = 0;
      for (std::size_t i = 0; i < digits; ++i) {
        const int digit = at + i < ascii.size() ? hex_digit(ascii[at + i]) : -1;
        if (digit < 0) {
          throw TemplateError("truncated \\" + std::string(1, kind) + std::string(digits, 'X') + " escape");
        }
        point = point << 4 | static_cast<char32_t>(digit);
      }
      at += digits;
      if (point > 0x10FFFF) throw TemplateError("illegal Unicode character");
      if (point >= 0xD800 && point < 0xE000) throw Unsupported("an escape of a lone surrogate");
      utf8::append(out, point);
    } else if (kind == 'N') {
      throw Unsupported("the escape \\N{...}");
    } else {
      out.push_back('\\');
      out.push_back(kind);
    }
  }
  return out;
}

}  // namespace l4::chat
