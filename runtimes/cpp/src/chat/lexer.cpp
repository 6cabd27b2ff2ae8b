#include "chat/lexer.hpp"

#include <algorithm>
#include <array>
#include <optional>

#include "base/utf8.hpp"
#include "chat/characters.hpp"
#include "chat/failure.hpp"
#include "chat/literals.hpp"
#include "chat/printing.hpp"

namespace l4::chat {

namespace {

bool is_word(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// "\r\n" and "\r" as "\n", and without the last line end.
std::string with_plain_line_ends(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t at = 0; at < source.size(); ++at) {
    if (source[at] == '\r') {
      out.push_back('\n');
      if (at + 1 < source.size() && source[at + 1] == '\n') ++at;
    } else {
      out.push_back(source[at]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

std::size_t behind_space(std::string_view text, std::size_t at) {
  while (at < text.size()) {
    std::size_t next = at;
    if (!is_space(utf8::next(text, next))) break;
    at = next;
  }
  return at;
}

std::string_view without_space_at_end(std::string_view text) {
  std::size_t end = 0;  // behind the last character that is no space
  for (std::size_t at = 0; at < text.size();) {
    if (!is_space(utf8::next(text, at))) end = at;
  }
  return text.substr(0, end);
}

// What follows the last line end, where that is nothing but space, is left out.
std::string_view without_indentation(std::string_view text, bool line_starts) {
  const std::size_t line_end = text.rfind('\n');
  if (line_end == std::string_view::npos && !line_starts) return text;
  const std::size_t begin = line_end == std::string_view::npos ? 0 : line_end + 1;
  return behind_space(text, begin) == text.size() ? text.substr(0, begin) : text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text_and_tag();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void add_data(std::string_view text) {
    if (!text.empty()) add(TokenKind::data, std::string(text));
  }

  bool sees(std::string_view text) const { return source_.substr(at_, text.size()) == text; }

  // Move on, counting lines.
  void move_to(std::size_t at) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + at, '\n'));
    line_starts_ = at > at_ ? source_[at - 1] == '\n' : line_starts_;
    at_ = at;
  }

  // Data up to a tag at `tag` that begins with a sign for white space, or none.
  void data_before(std::size_t tag, char sign, bool strips_indentation) {
    std::string_view text = source_.substr(at_, tag - at_);
    if (sign == '-') {
      text = without_space_at_end(text);
    } else if (sign != '+' && strips_indentation) {
      text = without_indentation(text, line_starts_);
    }
    add_data(text);
  }

  char sign_at(std::size_t at) const {
    const char sign = at < source_.size() ? source_[at] : '\0';
    return sign == '-' || sign == '+' ? sign : '\0';
  }

  // Behind "%}" or "#}" at `at`, with what its sign and trim_blocks take along; nothing if it is not there.
  std::optional<std::size_t> behind_end(std::size_t at, std::string_view end) const {
    const char sign = sign_at(at);
    const std::size_t mark = at + (sign != '\0');
    if (source_.substr(mark, end.size()) != end) return std::nullopt;
    const std::size_t behind = mark + end.size();
    if (sign == '-') return behind_space(source_, behind);
    return sign == '\0' && behind < source_.size() && source_[behind] == '\n' ? behind + 1 : behind;
  }

  std::size_t next_tag() const {
    std::size_t tag = source_.find('{', at_);
    while (tag != std::string_view::npos &&
           (tag + 1 == source_.size() || std::string_view("%{#").find(source_[tag + 1]) == std::string_view::npos)) {
      tag = source_.find('{', tag + 1);
    }
    return tag;
  }

  void text_and_tag() {
    const std::size_t tag = next_tag();
    if (tag == std::string_view::npos) {
      add_data(source_.substr(at_));
      return move_to(source_.size());
    }
    const char kind = source_[tag + 1], sign = sign_at(tag + 2);
    data_before(tag, sign, kind != '{');
    if (kind == '%') {
      if (const auto raw = behind_raw(tag)) return raw_block(*raw);
    }
    move_to(tag + 2 + (sign != '\0'));
    if (kind == '#') return comment();
    add(kind == '%' ? TokenKind::block_begin : TokenKind::variable_begin, "");
    if (kind == '%') {
      code("%}", TokenKind::block_end);
    } else {
      code("}}", TokenKind::variable_end);
    }
  }

  // Behind a whole "{% raw %}" at `tag`.
  std::optional<std::size_t> behind_raw(std::size_t tag) const {
    std::size_t at = behind_space(source_, tag + 2 + (sign_at(tag + 2) != '\0'));
    if (source_.substr(at, 3) != "raw") return std::nullopt;
    at = behind_space(source_, at + 3);
    if (source_.substr(at, 2) == "%}") return at + 2;
    if (source_.substr(at, 3) == "-%}") return behind_space(source_, at + 3);
    return std::nullopt;
  }

  void raw_block(std::size_t begin) {
    move_to(begin);
    for (std::size_t tag = source_.find("{%", at_); tag != std::string_view::npos; tag = source_.find("{%", tag + 1)) {
      const char sign = sign_at(tag + 2);
      const std::size_t word = behind_space(source_, tag + 2 + (sign != '\0'));
      if (source_.substr(word, 6) != "endraw") continue;
      const auto behind = behind_end(behind_space(source_, word + 6), "%}");
      if (!behind) continue;
      data_before(tag, sign, true);
      return move_to(*behind);
    }
    throw TemplateError("Missing end of raw directive");
  }

  void comment() {
    for (std::size_t at = at_; at < source_.size(); ++at) {
      if (const auto behind = behind_end(at, "#}")) return move_to(*behind);
    }
    throw TemplateError("Missing end of comment tag");
  }

  // What stands within a tag, up to its end.
  void code(std::string_view end, TokenKind end_kind) {
    std::string open;  // brackets that are to be closed
    while (at_ < source_.size()) {
      if (open.empty()) {
        if (const auto behind = behind_code(end)) {
          add(end_kind, "");
          return move_to(*behind);
        }
      }
      const std::size_t behind = behind_space(source_, at_);
      if (behind != at_) {
        move_to(behind);
      } else if (!number() && !name() && !string()) {
        sign(open);
      }
    }
  }

  std::optional<std::size_t> behind_code(std::string_view end) const {
    if (end == "%}") return behind_end(at_, end);
    if (sees("}}")) return at_ + 2;
    return sees("-}}") ? std::optional<std::size_t>(behind_space(source_, at_ + 3)) : std::nullopt;
  }

  bool number() {
    if (!is_digit(source_[at_])) return false;
    const NumberLiteral literal = number_at(source_, at_);
    add(literal.is_whole ? TokenKind::integer : TokenKind::number,
        std::string(source_.substr(at_, literal.behind - at_)));
    tokens_.back().integer = literal.integer;
    tokens_.back().number = literal.number;
    move_to(literal.behind);
    return true;
  }

  bool name() {
    std::size_t behind = at_;
    while (behind < source_.size() && is_word(source_[behind])) ++behind;
    if (behind < source_.size() && static_cast<unsigned char>(source_[behind]) >= 0x80) {
      std::size_t next = behind;
      const char32_t point = utf8::next(source_, next);
      if (has(point, kAlphabetic | kDecimal | kDigit | kNumeric)) {
        throw Unsupported("a name with characters beyond ASCII");
      }
    }
    if (behind == at_) return false;
    add(TokenKind::name, std::string(source_.substr(at_, behind - at_)));
    move_to(behind);
    return true;
  }

  bool string() {
    const char quote = source_[at_];
    if (quote != '"' && quote != '\'') return false;
    std::size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return false;
    add(TokenKind::string, unescaped(source_.substr(at_ + 1, end - at_ - 1)));
    move_to(end + 1);
    return true;
  }

  void sign(std::string& open) {
    static constexpr std::array<std::string_view, 26> kSigns = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto sign = std::find_if(kSigns.begin(), kSigns.end(), [&](std::string_view s) { return sees(s); });
    if (sign == kSigns.end()) {
      std::size_t next = at_;
      utf8::next(source_, next);
      const std::size_t points = static_cast<std::size_t>(
          std::count_if(source_.begin(), source_.begin() + at_, [](char c) { return (c & 0xC0) != 0x80; }));
      throw TemplateError("unexpected char " + repr(source_.substr(at_, next - at_)) + " at " + std::to_string(points));
    }
    static constexpr std::string_view kOpening = "{([", kClosing = "})]";
    if (const std::size_t kind = kOpening.find((*sign)[0]); kind != std::string_view::npos) {
      open.push_back(kClosing[kind]);
    }
    if (kClosing.find((*sign)[0]) != std::string_view::npos) {
      if (open.empty()) throw TemplateError("unexpected '" + std::string(*sign) + "'");
      const char expected = open.back();
      open.pop_back();
      if (expected != (*sign)[0]) {
        throw TemplateError("unexpected '" + std::string(*sign) + "', expected '" + expected + "'");
      }
    }
    add(TokenKind::sign, std::string(*sign));
    move_to(at_ + sign->size());
  }

  std::string_view source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starts_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  const std::string plain = with_plain_line_ends(source);
  return Lexer(plain).run();
}

}  // namespace l4::chat
