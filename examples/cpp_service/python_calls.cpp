#include "python_calls.hpp"

#include <cctype>
#include <stdexcept>

namespace service {
namespace {

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::vector<ToolCall> calls() {
    std::vector<ToolCall> found;
    if (take('[')) {
      items(']', [&] { found.push_back(call()); });
    } else {
      found.push_back(call());
    }
    space();
    if (at_ != text_.size()) fail();
    return found;
  }

 private:
  [[noreturn]] static void fail() { throw std::invalid_argument("no call with literals"); }

  void space() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  char peek() {
    space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }
  void expect(char wanted) {
    if (!take(wanted)) fail();
  }

  // Items with commas between them, and perhaps one behind the last.
  template <typename Item>
  void items(char end, Item&& item) {
    while (!take(end)) {
      item();
      if (take(end)) return;
      expect(',');
    }
  }

  std::string name() {
    space();
    const std::size_t begin = at_;
    const auto is_part = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || (c & 0x80); };
    while (at_ < text_.size() && is_part(text_[at_])) ++at_;
    if (at_ == begin || std::isdigit(static_cast<unsigned char>(text_[begin]))) fail();
    return std::string(text_.substr(begin, at_ - begin));
  }

  ToolCall call() {
    ToolCall made{name(), Json::object()};
    while (take('.')) made.name += "." + name();
    expect('(');
    items(')', [&] {
      const std::string key = name();
      expect('=');
      made.arguments[key] = value();
    });
    return made;
  }

  Json value() {
    if (++depth_ > 32) fail();
    const Json made = literal();
    --depth_;
    return made;
  }

  Json literal() {
    const char c = peek();
    if (c == '"' || c == '\'') return string();
    if (c == '-' || c == '.' || std::isdigit(static_cast<unsigned char>(c))) return number();
    if (take('[')) return list(']');
    if (take('{')) return dictionary();
    const std::string word = name();
    if (word == "True") return true;
    if (word == "False") return false;
    if (word == "None") return nullptr;
    fail();
  }

  Json list(char end) {
    Json made = Json::array();
    items(end, [&] { made.push_back(value()); });
    return made;
  }

  Json dictionary() {
    Json made = Json::object();
    items('}', [&] {
      if (peek() != '"' && peek() != '\'') fail();
      const std::string key = string();
      expect(':');
      made[key] = value();
    });
    return made;
  }

  // As JSON has it: what JSON cannot say is no argument.
  Json number() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '.' ||
                                  text_[at_] == '-' || text_[at_] == '+')) {
      ++at_;
    }
    return read_json(text_.substr(begin, at_ - begin));
  }

  std::string string() {
    const char quote = text_[at_++];
    std::string made;
    while (at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] == '\n') fail();
      if (text_[at_] != '\\') {
        made.push_back(text_[at_++]);
        continue;
      }
      if (++at_ == text_.size()) fail();
      switch (text_[at_++]) {
        case 'n': made.push_back('\n'); break;
        case 't': made.push_back('\t'); break;
        case 'r': made.push_back('\r'); break;
        case '\\': made.push_back('\\'); break;
        case '\'': made.push_back('\''); break;
        case '"': made.push_back('"'); break;
        default: fail();
      }
    }
    if (at_ == text_.size()) fail();
    ++at_;
    return made;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

std::vector<ToolCall> python_calls(std::string_view text) { return Reader(text).calls(); }

}  // namespace service
