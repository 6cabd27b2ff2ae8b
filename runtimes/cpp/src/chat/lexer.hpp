// The tokens of a template, with white space controlled as jinja2 does with trim_blocks and lstrip_blocks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace l4::chat {

enum class TokenKind {
  data, variable_begin, variable_end, block_begin, block_end, name, string, integer, number, sign, end
};

struct Token {
  TokenKind kind;
  std::string text;  // as it is written; of a string, what it means
  int line;
  std::int64_t integer = 0;
  double number = 0;

  bool is(TokenKind other) const { return kind == other; }
  bool is_sign(std::string_view sign) const { return kind == TokenKind::sign && text == sign; }
  bool is_name(std::string_view name) const { return kind == TokenKind::name && text == name; }
};

// The last token is the end. Raises TemplateError where jinja2 raises TemplateSyntaxError, and Unsupported.
std::vector<Token> tokenize(std::string_view source);

}  // namespace l4::chat
