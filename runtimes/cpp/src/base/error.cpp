#include "base/error.hpp"

#include <string_view>
#include <system_error>

#include "base/utf8.hpp"

namespace l4 {

std::string printable(std::string_view text, std::size_t most) {
  const std::string valid = utf8::repaired(text);
  std::string line;
  for (std::size_t at = 0; at < valid.size() && line.size() < most;) {
    const char32_t point = utf8::next(valid, at);
    if (point == ' ' || (point >= '\t' && point <= '\r')) {
      if (!line.empty() && line.back() != ' ') line.push_back(' ');
      continue;
    }
    utf8::append(line, utf8::is_printable(point) ? point : U'\uFFFD');
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

std::string system_reason(int code) { return std::generic_category().message(code); }

std::string in_quotes(std::string_view text) { return "'" + printable(text, 60) + "'"; }

}  // namespace l4
