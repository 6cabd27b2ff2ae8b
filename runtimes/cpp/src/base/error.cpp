#include "base/error.hpp"

#include <string_view>

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
    // controls, separators and marks of direction
    const bool control = point < 0x20 || (point >= 0x7F && point < 0xA0) || (point >= 0x200B && point <= 0x200F) ||
                         (point >= 0x2028 && point <= 0x202E) || (point >= 0x2060 && point <= 0x206F) || point == 0xFEFF;
    utf8::append(line, control ? U'\uFFFD' : point);
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

std::string quoted(std::string_view text) { return "'" + printable(text, 60) + "'"; }

}  // namespace l4
