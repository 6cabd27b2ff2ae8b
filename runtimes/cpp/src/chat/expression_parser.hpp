// The part of the parser that reads expressions.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "chat/lexer.hpp"
#include "chat/expression_nodes.hpp"

namespace l4::chat {

// A node whose children are complete.
template <typename N>
std::unique_ptr<N> finished(std::unique_ptr<N> node) {
  node->measure();
  return node;
}

// A node of parts that are complete.
template <typename N, typename... Parts>
std::unique_ptr<N> make(Parts&&... parts) {
  return finished(std::make_unique<N>(std::forward<Parts>(parts)...));
}

bool is_constant(std::string_view name);  // true, false, none, True, ...

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  ExpressionPtr expression(bool conditional = true);
  // One expression, or several with commas between them.
  ExpressionPtr tuple(bool conditional = true, const std::vector<std::string_view>& ends = {},
                      bool in_parentheses = false);
  // Filters from here on; `first`: its name comes now, without "|".
  std::unique_ptr<FilterNode> filters(ExpressionPtr of, bool first);
  // What is written as it is: there, marking a text as safe is nothing but making it a text.
  static ExpressionPtr written(ExpressionPtr expression);

 protected:
  // Counts how deep the parser is in itself.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.nesting_; }

   private:
    ExpressionParser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  const Token& take() { return at_ + 1 < tokens_.size() ? tokens_[at_++] : tokens_[at_]; }
  const Token& expect(TokenKind kind);
  void expect_sign(std::string_view sign);
  void expect_name(std::string_view name);
  bool skip_sign(std::string_view sign);
  bool skip_name(std::string_view name);
  bool ends_tuple(const std::vector<std::string_view>& ends) const;
  [[noreturn]] void unexpected() const;

 private:
  ExpressionPtr disjunction();
  ExpressionPtr conjunction();
  ExpressionPtr negation();
  ExpressionPtr comparison();
  ExpressionPtr sum();
  ExpressionPtr concatenation();
  ExpressionPtr product();
  ExpressionPtr power();
  ExpressionPtr unary(bool with_filters = true);
  ExpressionPtr primary();
  ExpressionPtr postfix(ExpressionPtr node);
  ExpressionPtr filters_and_tests(ExpressionPtr node);
  ExpressionPtr subscripted(ExpressionPtr node);
  ExpressionPtr in_brackets(ExpressionPtr node);
  ExpressionPtr call(ExpressionPtr callee);
  ExpressionPtr test(ExpressionPtr of);
  ExpressionPtr list();
  ExpressionPtr dict();
  ArgumentNodes arguments();

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace l4::chat
