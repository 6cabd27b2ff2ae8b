// The part of the expression parser that reads operands: literals, names, and what stands behind them.
#include <utility>

#include "chat/expression_parser.hpp"
#include "chat/failure.hpp"
#include "chat/filters.hpp"
#include "chat/methods.hpp"
#include "chat/tests.hpp"

namespace l4::chat {

ExpressionPtr ExpressionParser::primary() {
  const Token& token = current();
  switch (token.kind) {
    case TokenKind::name:
      take();
      if (!is_constant(token.text)) return make<NameNode>(token.text);
      if (token.text == "none" || token.text == "None") return make<ConstNode>(nullptr);
      return make<ConstNode>(token.text == "true" || token.text == "True");
    case TokenKind::string: {
      std::string text;
      while (current().is(TokenKind::string)) text += take().text;
      return make<ConstNode>(Value(std::move(text)));
    }
    case TokenKind::integer: return make<ConstNode>(take().integer);
    case TokenKind::number: return make<ConstNode>(take().number);
    default: break;
  }
  if (skip_sign("(")) {
    ExpressionPtr node = tuple(true, {}, true);
    expect_sign(")");
    return node;
  }
  if (skip_sign("[")) return list();
  if (skip_sign("{")) return dict();
  unexpected();
}

ExpressionPtr ExpressionParser::list() {
  Expressions items;
  while (!current().is_sign("]")) {
    items.push_back(expression());
    if (!skip_sign(",")) break;
  }
  expect_sign("]");
  return make<SequenceNode>(Brackets::list, std::move(items));
}

ExpressionPtr ExpressionParser::dict() {
  auto node = std::make_unique<DictNode>();
  while (!current().is_sign("}")) {
    ExpressionPtr key = expression();
    expect_sign(":");
    node->items.emplace_back(std::move(key), expression());
    if (!skip_sign(",")) break;
  }
  expect_sign("}");
  return finished(std::move(node));
}

ExpressionPtr ExpressionParser::postfix(ExpressionPtr node) {
  for (;;) {
    if (current().is_sign(".") || current().is_sign("[")) {
      node = subscripted(std::move(node));
    } else if (current().is_sign("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::filters_and_tests(ExpressionPtr node) {
  for (;;) {
    if (current().is_sign("|")) {
      node = filters(std::move(node), false);
    } else if (skip_name("is")) {
      node = test(std::move(node));
    } else if (current().is_sign("(")) {
      node = call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr ExpressionParser::subscripted(ExpressionPtr node) {
  if (skip_sign("[")) return in_brackets(std::move(node));
  take();
  if (current().is(TokenKind::name)) return make<AttributeNode>(std::move(node), take().text);
  if (!current().is(TokenKind::integer)) throw TemplateError("expected name or number");
  return make<ItemNode>(std::move(node), make<ConstNode>(take().integer));
}

ExpressionPtr ExpressionParser::in_brackets(ExpressionPtr node) {
  const auto ends = [&] { return current().is_sign("]") || current().is_sign(","); };
  Expressions keys;
  while (!current().is_sign("]")) {
    if (!keys.empty()) expect_sign(",");
    ExpressionPtr start = current().is_sign(":") ? nullptr : expression();
    if (!skip_sign(":")) {
      keys.push_back(std::move(start));
      continue;
    }
    auto slice = std::make_unique<SliceNode>();
    slice->start = std::move(start);
    if (!current().is_sign(":") && !ends()) slice->stop = expression();
    if (skip_sign(":") && !ends()) slice->step = expression();
    if (!keys.empty() || current().is_sign(",")) throw Unsupported("a slice among several subscripts");
    expect_sign("]");
    slice->of = std::move(node);
    return finished(std::move(slice));
  }
  expect_sign("]");
  ExpressionPtr key = keys.size() == 1 ? std::move(keys[0]) : make<SequenceNode>(Brackets::tuple, std::move(keys));
  return make<ItemNode>(std::move(node), std::move(key));
}

ArgumentNodes ExpressionParser::arguments() {
  ArgumentNodes found;
  const auto ensure = [](bool holds) {
    if (!holds) throw TemplateError("invalid syntax for function call expression");
  };
  expect_sign("(");
  for (bool first = true; !current().is_sign(")"); first = false) {
    if (!first) {
      expect_sign(",");
      if (current().is_sign(")")) break;
    }
    if (skip_sign("*")) {
      ensure(!found.many && !found.many_named);
      found.many = expression();
    } else if (skip_sign("**")) {
      ensure(!found.many_named);
      found.many_named = expression();
    } else if (current().is(TokenKind::name) && ahead().is_sign("=")) {
      ensure(!found.many_named);
      std::string name = take().text;
      take();
      for (const auto& [other, value] : found.named) {
        if (other == name) throw TemplateError("SyntaxError: keyword argument repeated: " + name);
      }
      found.named.emplace_back(std::move(name), expression());
    } else {
      ensure(!found.many && !found.many_named && found.named.empty());
      found.positional.push_back(expression());
    }
  }
  expect_sign(")");
  return found;
}

ExpressionPtr ExpressionParser::call(ExpressionPtr callee) {
  auto node = std::make_unique<CallNode>();
  if (const auto* method = dynamic_cast<AttributeNode*>(callee.get())) check_method(method->name);
  node->callee = std::move(callee);
  node->arguments = arguments();
  return finished(std::move(node));
}

std::unique_ptr<FilterNode> ExpressionParser::filters(ExpressionPtr of, bool first) {
  std::unique_ptr<FilterNode> node;
  while (first || skip_sign("|")) {
    first = false;
    auto next = std::make_unique<FilterNode>();
    next->of = node ? std::move(node) : std::move(of);
    next->name = expect(TokenKind::name).text;
    while (skip_sign(".")) next->name += "." + expect(TokenKind::name).text;
    if (current().is_sign("(")) next->arguments = arguments();
    check_filter(next->name);
    node = finished(std::move(next));
  }
  return node;
}

ExpressionPtr ExpressionParser::test(ExpressionPtr of) {
  const bool negated = skip_name("not");
  auto node = std::make_unique<TestNode>();
  node->of = std::move(of);
  node->name = expect(TokenKind::name).text;
  while (skip_sign(".")) node->name += "." + expect(TokenKind::name).text;
  check_test(node->name);
  const Token& next = current();
  const bool value = next.is(TokenKind::name) || next.is(TokenKind::string) || next.is(TokenKind::integer) ||
                     next.is(TokenKind::number) || next.is_sign("[") || next.is_sign("{");
  if (next.is_sign("(")) {
    node->arguments = arguments();
  } else if (value && !next.is_name("else") && !next.is_name("or") && !next.is_name("and")) {
    if (next.is_name("is")) throw TemplateError("You cannot chain multiple tests with is");
    node->arguments.positional.push_back(postfix(primary()));
  }
  node->measure();
  if (!negated) return node;
  return make<UnaryNode>(Unary::negation, std::move(node));
}

}  // namespace l4::chat
