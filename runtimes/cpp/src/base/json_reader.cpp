#include "base/json.hpp"

#include <charconv>

#include "base/decimal.hpp"
#include "base/error.hpp"
#include "base/utf8.hpp"

namespace l4::json {

Reader::Reader(std::string_view text, std::string where, Limits limits)
    : text_(text), where_(std::move(where)), limits_(limits) {
  if (text_.substr(0, 3) == "\xEF\xBB\xBF") fail("it begins with a byte order mark");
}

void Reader::fail(const std::string& problem) const {
  throw bad_input(where_ + ": not valid JSON (" + problem + " at byte " + std::to_string(at_) +
                  "); is the file complete?");
}

void Reader::space() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
    ++at_;
  }
}

void Reader::count() {
  if (++values_ > limits_.values) {
    throw bad_input(where_ + ": JSON of more than " + std::to_string(limits_.values) + " values; no more are read");
  }
}

void Reader::open(char bracket) {
  space();
  if (at_ == text_.size() || text_[at_] != bracket) fail(std::string("expected ") + bracket);
  if (++depth_ > limits_.depth) throw bad_input(where_ + ": JSON is nested too deeply; is this the right file?");
  count();
  ++at_;
}

bool Reader::closes(char bracket) {
  space();
  if (at_ == text_.size() || text_[at_] != bracket) return false;
  ++at_;
  return true;
}

bool Reader::comma_or(char bracket) {
  if (closes(bracket)) return false;
  if (at_ == text_.size() || text_[at_] != ',') fail(std::string("expected , or ") + bracket);
  count();
  ++at_;
  return true;
}

void Reader::colon() {
  space();
  if (at_ == text_.size() || text_[at_] != ':') fail("expected :");
  count();
  ++at_;
}

Kind Reader::peek() {
  space();
  if (at_ == text_.size()) fail("a value is missing");
  switch (text_[at_]) {
    case 'n': return Kind::null;
    case 't': case 'f': return Kind::boolean;
    case '"': return Kind::string;
    case '[': return Kind::array;
    case '{': return Kind::object;
    default: break;
  }
  std::size_t at = at_ + (text_[at_] == '-');
  if (at == text_.size() || text_[at] < '0' || text_[at] > '9') fail("no value");
  while (at < text_.size() && text_[at] >= '0' && text_[at] <= '9') ++at;
  const bool whole = at == text_.size() || (text_[at] != '.' && text_[at] != 'e' && text_[at] != 'E');
  return whole ? Kind::integer : Kind::number;
}

void Reader::literal(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) fail("no value");
  at_ += word.size();
}

void Reader::null() {
  if (peek() != Kind::null) fail("expected null");
  literal("null");
}

bool Reader::boolean() {
  if (peek() != Kind::boolean) fail("expected true or false");
  const bool value = text_[at_] == 't';
  literal(value ? "true" : "false");
  return value;
}

std::string_view Reader::raw_number() {
  const Kind kind = peek();
  if (kind != Kind::integer && kind != Kind::number) fail("expected a number");
  const std::size_t begin = at_;
  const auto digits = [&] {
    const std::size_t first = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    if (at_ == first) fail("a digit is missing");
    return at_ - first;
  };
  if (text_[at_] == '-') ++at_;
  const bool zero = text_[at_] == '0';
  if (digits() > 1 && zero) fail("a number begins with 0");
  if (at_ < text_.size() && text_[at_] == '.') ++at_, digits();
  if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
    ++at_;
    if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
    digits();
  }
  return text_.substr(begin, at_ - begin);
}

std::int64_t Reader::integer() {
  const std::string_view text = raw_number();
  if (text.find_first_of(".eE") != std::string_view::npos) fail("expected an integer");
  std::int64_t value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc()) {
    fail("an integer beyond 64 bits");
  }
  return value;
}

double Reader::number() { return decimal(raw_number()); }

std::uint32_t Reader::hex4(std::size_t at) const {
  std::uint32_t value = 0;
  if (at + 4 > text_.size()) fail("an escape is cut off");
  for (std::size_t i = at; i < at + 4; ++i) {
    const char c = text_[i];
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("a bad escape");
    value = value << 4 | static_cast<std::uint32_t>(digit);
  }
  return value;
}

std::string_view Reader::string_view(std::string& scratch) {
  if (peek() != Kind::string) fail("expected a string");
  const std::size_t begin = ++at_;
  bool plain = true;
  unsigned char all = 0;  // of the string's bits
  while (true) {
    if (at_ >= text_.size()) fail("a string without end");
    const auto byte = static_cast<unsigned char>(text_[at_]);
    all |= byte;
    if (byte >= 0x20 && byte != '"' && byte != '\\') {
      ++at_;
      continue;
    }
    if (byte == '"') break;
    if (byte < 0x20) fail("a control character in a string");
    plain = false;
    if (++at_ >= text_.size()) fail("a string without end");
    all |= static_cast<unsigned char>(text_[at_++]);
  }
  const bool ascii = all < 0x80;
  const std::string_view raw = text_.substr(begin, at_ - begin);
  const std::size_t end = at_ + 1;
  if (!ascii) {
    const std::size_t bad = utf8::first_invalid(raw);
    if (bad != utf8::npos) at_ = begin + bad, fail("bad UTF-8");
  }
  if (plain) return at_ = end, raw;
  scratch.clear();
  for (std::size_t i = begin; i < begin + raw.size();) {
    if (text_[i] != '\\') {
      scratch.push_back(text_[i++]);
      continue;
    }
    const char escape = text_[i + 1];
    at_ = i;
    i += 2;
    switch (escape) {
      case '"': case '\\': case '/': scratch.push_back(escape); break;
      case 'b': scratch.push_back('\b'); break;
      case 'f': scratch.push_back('\f'); break;
      case 'n': scratch.push_back('\n'); break;
      case 'r': scratch.push_back('\r'); break;
      case 't': scratch.push_back('\t'); break;
      case 'u': {
        char32_t point = hex4(i);
        i += 4;
        if (point >= 0xD800 && point < 0xDC00 && text_.substr(i, 2) == "\\u") {
          const std::uint32_t low = hex4(i + 2);
          if (low >= 0xDC00 && low < 0xE000) point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00), i += 6;
        }
        if (point >= 0xD800 && point < 0xE000) fail("half a surrogate pair");
        utf8::append(scratch, point);
        break;
      }
      default: fail("a bad escape");
    }
  }
  at_ = end;
  return scratch;
}

std::string Reader::string() {
  std::string scratch;
  return std::string(string_view(scratch));
}

std::string_view Reader::skip() {
  std::string scratch;
  const Kind kind = peek();
  const std::size_t begin = at_;
  switch (kind) {
    case Kind::null: null(); break;
    case Kind::boolean: boolean(); break;
    case Kind::integer: case Kind::number: raw_number(); break;
    case Kind::string: string_view(scratch); break;
    case Kind::array: array([&] { skip(); }); break;
    case Kind::object: object([&](std::string_view) { skip(); }); break;
  }
  return text_.substr(begin, at_ - begin);
}

void Reader::end() {
  space();
  if (at_ != text_.size()) fail("something follows the value");
}

}  // namespace l4::json
