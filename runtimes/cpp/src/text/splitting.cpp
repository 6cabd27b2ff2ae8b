#include "text/splitting.hpp"

#include <cstdint>

#include "base/utf8.hpp"
#include "text/characters.hpp"

namespace l4::text {

namespace {

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama4 =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// One character of a text, and where the next one begins. Behind the end: no class, and no code point.
struct Character {
  char32_t point = 0xFFFFFFFF;
  std::uint8_t kind = 0;
  std::size_t end = 0;

  bool is(std::uint8_t bits) const { return (kind & bits) != 0; }
  bool is_line_end() const { return point == '\r' || point == '\n'; }
  bool is_other() const { return point != 0xFFFFFFFF && !is(kLetter | kNumber | kSpace); }  // [^\s\p{L}\p{N}]
  // [^\r\n\p{L}\p{N}]
  bool may_lead() const { return point != 0xFFFFFFFF && !is_line_end() && !is(kLetter | kNumber); }
};

Character character_at(std::string_view text, std::size_t at) {
  Character found;
  found.end = at;
  if (at < text.size()) {
    found.point = utf8::next(text, found.end);
    found.kind = class_of(found.point);
  }
  return found;
}

// The end of the run of characters of some class that begins at `at`; `at` itself where there is none.
std::size_t run(std::string_view text, std::size_t at, std::uint8_t bits) {
  for (Character next = character_at(text, at); next.is(bits); next = character_at(text, at)) at = next.end;
  return at;
}

// 's|'t|'re|'ve|'m|'ll|'d; where case is ignored, U+017F (long s) is an s too. `at` itself where there is none.
std::size_t contraction(std::string_view text, std::size_t at, bool ignore_case) {
  if (at >= text.size() || text[at] != '\'') return at;
  const auto letter = [&](const Character& character) -> char32_t {
    const char32_t point = character.point;
    if (!ignore_case) return point;
    return point == 0x17F ? U's' : point >= 'A' && point <= 'Z' ? point + ('a' - 'A') : point;
  };
  const Character first = character_at(text, at + 1);
  const char32_t one = letter(first);
  if (one == 's' || one == 't' || one == 'm' || one == 'd') return first.end;
  if (one != 'r' && one != 'v' && one != 'l') return at;
  const Character second = character_at(text, first.end);
  return letter(second) == (one == 'l' ? U'l' : U'e') ? second.end : at;
}

// \s*[\r\n]+|\s+(?!\S)|\s+, the first only where `lines`. `at` is white space.
std::size_t white_space(std::string_view text, std::size_t at, bool lines) {
  std::size_t end = at, last = at, behind_line = at;
  for (Character next = character_at(text, end); next.is(kSpace); next = character_at(text, end)) {
    last = end;
    end = next.end;
    if (next.is_line_end()) behind_line = end;
  }
  if (lines && behind_line > at) return behind_line;
  return end == text.size() || last == at ? end : last;  // the last one belongs to what follows, if it is not alone
}

// " ?[^\s\p{L}\p{N}]+" and then any of `tail`; `at` itself where there is none.
std::size_t symbols(std::string_view text, std::size_t at, std::string_view tail) {
  const std::size_t begin = at + (text[at] == ' ');
  std::size_t end = begin;
  for (Character next = character_at(text, end); next.is_other(); next = character_at(text, end)) end = next.end;
  if (end == begin) return at;
  while (end < text.size() && tail.find(text[end]) != std::string_view::npos) ++end;
  return end;
}

// What both of Llama's patterns have after letters: \p{N}{1,3}, symbols, white space.
std::size_t after_letters(std::string_view text, std::size_t at, std::string_view tail) {
  Character next = character_at(text, at);
  if (next.is(kNumber)) {
    for (int count = 0; count < 3 && next.is(kNumber); ++count) next = character_at(text, at = next.end);
    return at;
  }
  const std::size_t end = symbols(text, at, tail);
  return end > at ? end : white_space(text, at, true);
}

// [upper]*[lower]+ from `begin` on; `begin` itself where there is none. A character may be of both kinds, so that the
// first part gives back what the second one needs: the last such character. Otherwise `upper` is where the first part
// ends.
std::size_t upper_and_lower(std::string_view text, std::size_t begin, std::size_t& upper) {
  std::size_t at = begin, behind_both = begin;
  for (Character next = character_at(text, at); next.is(kUpper); next = character_at(text, at)) {
    at = next.end;
    if (next.is(kLower)) behind_both = at;
  }
  upper = at;
  const std::size_t end = run(text, at, kLower);
  return end > at ? end : behind_both;
}

}  // namespace

std::size_t split_as_llama4(std::string_view text, std::size_t at) {
  const Character first = character_at(text, at);
  // each of the two alternatives with a leading character, where there may be one, and then without it
  std::size_t led_upper = 0, upper = 0;
  if (first.may_lead()) {
    const std::size_t end = upper_and_lower(text, first.end, led_upper);
    if (end > first.end) return contraction(text, end, true);
  }
  const std::size_t end = upper_and_lower(text, at, upper);
  if (end > at) return contraction(text, end, true);
  // no lower case follows: [upper]+ alone
  if (first.may_lead() && led_upper > first.end) return contraction(text, led_upper, true);
  if (upper > at) return contraction(text, upper, true);
  return after_letters(text, at, "\r\n/");
}

std::size_t split_as_llama3(std::string_view text, std::size_t at) {
  if (const std::size_t end = contraction(text, at, true); end > at) return end;
  const Character first = character_at(text, at);
  const std::size_t begin = first.may_lead() ? first.end : at;
  const std::size_t end = run(text, begin, kLetter);
  return end > begin ? end : after_letters(text, at, "\r\n");
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t split_as_gpt2(std::string_view text, std::size_t at) {
  if (const std::size_t end = contraction(text, at, false); end > at) return end;
  const std::size_t begin = at + (text[at] == ' ');
  for (const std::uint8_t bits : {kLetter, kNumber}) {
    if (const std::size_t end = run(text, begin, bits); end > begin) return end;
  }
  const std::size_t end = symbols(text, at, "");
  return end > at ? end : white_space(text, at, false);
}

std::size_t split_nowhere(std::string_view text, std::size_t) { return text.size(); }

Splitter splitter_of(std::string_view pattern) {
  return pattern == kLlama3 ? split_as_llama3 : pattern == kLlama4 ? split_as_llama4 : nullptr;
}

}  // namespace l4::text
