#include "chat/characters.hpp"

#include <algorithm>
#include <iterator>

#include "base/utf8.hpp"

namespace l4::chat {

namespace {

struct CharacterRange {
  std::uint32_t first, last;
  std::uint16_t properties;
};

// Every `step`th character from `first` to `last` becomes the one `delta` further.
struct CaseRange {
  std::uint32_t first, last, step;
  std::int32_t delta;
};

// A character that becomes several, 0 where there are fewer than three.
struct LongCase {
  std::uint32_t from, to[3];
};

#include "chat/character_table.inc"

template <std::size_t N>
const CaseRange* find_range(const CaseRange (&ranges)[N], char32_t point) {
  const CaseRange* range =
      std::lower_bound(ranges, ranges + N, point, [](const CaseRange& r, char32_t p) { return r.last < p; });
  const bool found = range != ranges + N && range->first <= point && (point - range->first) % range->step == 0;
  return found ? range : nullptr;
}

template <std::size_t R, std::size_t L>
void append_case(std::string& out, char32_t point, const CaseRange (&ranges)[R], const LongCase (&longs)[L]) {
  const LongCase* several =
      std::lower_bound(longs, longs + L, point, [](const LongCase& c, char32_t p) { return c.from < p; });
  if (several != longs + L && several->from == point) {
    for (const std::uint32_t to : several->to) {
      if (to != 0) utf8::append(out, to);
    }
    return;
  }
  const CaseRange* range = find_range(ranges, point);
  utf8::append(out, range == nullptr ? point : static_cast<char32_t>(static_cast<std::int64_t>(point) + range->delta));
}

void append_upper(std::string& out, char32_t point) { append_case(out, point, kUpperRanges, kUpperLong); }
void append_title(std::string& out, char32_t point) { append_case(out, point, kTitleRanges, kTitleLong); }

constexpr char32_t kSigma = 0x3A3, kFinalSigma = 0x3C2, kSmallSigma = 0x3C3;

std::size_t start_before(std::string_view text, std::size_t at) {
  do --at;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

// Whether the sigma that takes bytes `at` to `behind` ends a word [Unicode, Final_Sigma].
bool ends_word(std::string_view text, std::size_t at, std::size_t behind) {
  bool cased_before = false;
  while (at > 0) {
    std::size_t start = at = start_before(text, at);
    const std::uint16_t found = properties(utf8::next(text, start));
    if (found & kIgnorable) continue;
    cased_before = found & kCased;
    break;
  }
  if (!cased_before) return false;
  while (behind < text.size()) {
    const std::uint16_t found = properties(utf8::next(text, behind));
    if (found & kIgnorable) continue;
    return !(found & kCased);
  }
  return true;
}

// The character at `at` of `text` in small letters; `at` moves behind it.
void append_lower(std::string& out, std::string_view text, std::size_t& at) {
  const std::size_t begin = at;
  const char32_t point = utf8::next(text, at);
  if (point == kSigma) return utf8::append(out, ends_word(text, begin, at) ? kFinalSigma : kSmallSigma);
  append_case(out, point, kLowerRanges, kLowerLong);
}

}  // namespace

std::uint16_t properties(char32_t point) {
  const auto* end = std::end(kCharacters);
  const auto* range = std::lower_bound(std::begin(kCharacters), end, point,
                                       [](const CharacterRange& r, char32_t p) { return r.last < p; });
  return range != end && range->first <= point ? range->properties : 0;
}

bool is_space(char32_t point) {
  return (point >= 0x09 && point <= 0x0D) || (point >= 0x1C && point <= 0x20) || point == 0x85 || point == 0xA0 ||
         point == 0x1680 || (point >= 0x2000 && point <= 0x200A) || point == 0x2028 || point == 0x2029 ||
         point == 0x202F || point == 0x205F || point == 0x3000;
}

bool is_line_end(char32_t point) {
  return (point >= 0x0A && point <= 0x0D) || (point >= 0x1C && point <= 0x1E) || point == 0x85 || point == 0x2028 ||
         point == 0x2029;
}

std::string upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) append_upper(out, utf8::next(text, at));
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) append_lower(out, text, at);
  return out;
}

std::string swapcase(std::string_view text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t point = utf8::next(text, at);
    const std::uint16_t found = properties(point);
    if (found & kUpper) {
      at = begin;
      append_lower(out, text, at);
    } else if (found & kLower) {
      append_upper(out, point);
    } else {
      utf8::append(out, point);
    }
  }
  return out;
}

std::string capitalized(std::string_view text) {
  std::string out;
  std::size_t at = 0;
  if (!text.empty()) append_title(out, utf8::next(text, at));
  while (at < text.size()) append_lower(out, text, at);
  return out;
}

std::string titled(std::string_view text) {
  std::string out;
  bool within = false;  // a word
  for (std::size_t at = 0; at < text.size();) {
    std::size_t behind = at;
    const char32_t point = utf8::next(text, behind);
    if (within) {
      append_lower(out, text, at);
    } else {
      append_title(out, point);
      at = behind;
    }
    within = has(point, kCased);
  }
  return out;
}

}  // namespace l4::chat
