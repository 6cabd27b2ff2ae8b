#include "chat/expression_parser.hpp"

#include <algorithm>
#include <array>

#include "chat/failure.hpp"
#include "chat/filters.hpp"
#include "chat/methods.hpp"
#include "chat/parser.hpp"
#include "chat/tests.hpp"

namespace l4::chat {

namespace {

std::string described(const Token& token) {
  switch (token.kind) {
    case TokenKind::data: return "template data / text";
    case TokenKind::variable_begin: return "begin of print statement";
    case TokenKind::variable_end: return "end of print statement";
    case TokenKind::block_begin: return "begin of statement block";
    case TokenKind::block_end: return "end of statement block";
    case TokenKind::string: return "string";
    case TokenKind::integer: return "integer";
    case TokenKind::number: return "float";
    case TokenKind::end: return "end of template";
    default: return token.text;
  }
}

template <typename N, typename... Parts>
std::unique_ptr<N> make(Parts&&... parts) {
  return finished(std::make_unique<N>(std::forward<Parts>(parts)...));
}

}  // namespace

bool is_constant(std::string_view name) {
  static constexpr std::array<std::string_view, 6> kNames = {"true", "false", "none", "True", "False", "None"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.nesting_ > kMostNesting) throw TemplateError("it is nested too deeply");
}

const Token& ExpressionParser::expect(TokenKind kind) {
  if (!current().is(kind)) throw TemplateError("expected token '" + described({kind, "name", 0}) + "', got '" + described(current()) + "'");
  return take();
}

void ExpressionParser::expect_sign(std::string_view sign) {
  if (!skip_sign(sign)) throw TemplateError("expected token '" + std::string(sign) + "', got '" + described(current()) + "'");
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) throw TemplateError("expected token '" + std::string(name) + "', got '" + described(current()) + "'");
}

bool ExpressionParser::skip_sign(std::string_view sign) { return current().is_sign(sign) && (take(), true); }

bool ExpressionParser::skip_name(std::string_view name) { return current().is_name(name) && (take(), true); }

bool ExpressionParser::ends_tuple(const std::vector<std::string_view>& ends) const {
  if (current().is(TokenKind::variable_end) || current().is(TokenKind::block_end) || current().is_sign(")")) return true;
  return current().is(TokenKind::name) && std::find(ends.begin(), ends.end(), current().text) != ends.end();
}

void ExpressionParser::unexpected() const { throw TemplateError("unexpected '" + described(current()) + "'"); }

ExpressionPtr ExpressionParser::written(ExpressionPtr expression) {
  if (auto* filter = dynamic_cast<FilterNode*>(expression.get()); filter != nullptr && filter->name == "safe") {
    filter->name = "string";
    if (filter->of) filter->of = written(std::move(filter->of));
  } else if (auto* conditional = dynamic_cast<ConditionalNode*>(expression.get())) {
    conditional->then = written(std::move(conditional->then));
    if (conditional->otherwise) conditional->otherwise = written(std::move(conditional->otherwise));
  }
  return expression;
}

ExpressionPtr ExpressionParser::tuple(bool conditional, const std::vector<std::string_view>& ends, bool in_parentheses) {
  Expressions items;
  bool is_tuple = false;
  while (!ends_tuple(ends)) {
    items.push_back(expression(conditional));
    if (!skip_sign(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !items.empty()) return std::move(items[0]);
  if (!is_tuple && !in_parentheses) throw TemplateError("Expected an expression, got '" + described(current()) + "'");
  return make<SequenceNode>(Brackets::tuple, std::move(items));
}

ExpressionPtr ExpressionParser::expression(bool conditional) {
  const Nesting nesting(*this);
  ExpressionPtr node = disjunction();
  while (conditional && current().is_name("if")) {
    auto choice = std::make_unique<ConditionalNode>();
    choice->line = take().line;
    choice->then = std::move(node);
    choice->test = disjunction();
    if (skip_name("else")) choice->otherwise = expression();
    node = finished(std::move(choice));
  }
  return node;
}

ExpressionPtr ExpressionParser::disjunction() {
  ExpressionPtr node = conjunction();
  while (skip_name("or")) node = make<LogicNode>(false, std::move(node), conjunction());
  return node;
}

ExpressionPtr ExpressionParser::conjunction() {
  ExpressionPtr node = negation();
  while (skip_name("and")) node = make<LogicNode>(true, std::move(node), negation());
  return node;
}

ExpressionPtr ExpressionParser::negation() {
  if (!skip_name("not")) return comparison();
  const Nesting nesting(*this);
  return make<UnaryNode>(Unary::negation, negation());
}

ExpressionPtr ExpressionParser::comparison() {
  static constexpr std::array<std::pair<std::string_view, Comparison>, 6> kSigns = {{{"==", Comparison::equal},
                                                                                   {"!=", Comparison::unequal},
                                                                                   {"<", Comparison::less},
                                                                                   {"<=", Comparison::at_most},
                                                                                   {">", Comparison::greater},
                                                                                   {">=", Comparison::at_least}}};
  auto node = std::make_unique<CompareNode>();
  node->first = sum();
  for (;;) {
    const auto sign = std::find_if(kSigns.begin(), kSigns.end(), [&](const auto& s) { return current().is_sign(s.first); });
    Comparison comparison = Comparison::in;
    if (sign != kSigns.end()) {
      take();
      comparison = sign->second;
    } else if (current().is_name("not") && ahead().is_name("in")) {
      take(), take();
      comparison = Comparison::not_in;
    } else if (!skip_name("in")) {
      break;
    }
    node->others.emplace_back(comparison, sum());
  }
  if (node->others.empty()) return std::move(node->first);
  return finished(std::move(node));
}

ExpressionPtr ExpressionParser::sum() {
  ExpressionPtr node = concatenation();
  while (current().is_sign("+") || current().is_sign("-")) {
    const Operator sign = take().text == "+" ? Operator::add : Operator::subtract;
    node = make<BinaryNode>(sign, std::move(node), concatenation());
  }
  return node;
}

ExpressionPtr ExpressionParser::concatenation() {
  Expressions parts;
  do parts.push_back(product());
  while (skip_sign("~"));
  if (parts.size() == 1) return std::move(parts[0]);
  for (ExpressionPtr& part : parts) part = written(std::move(part));
  return make<ConcatNode>(std::move(parts));
}

ExpressionPtr ExpressionParser::product() {
  static constexpr std::array<std::pair<std::string_view, Operator>, 4> kSigns = {
      {{"*", Operator::multiply}, {"/", Operator::divide}, {"//", Operator::floor_divide}, {"%", Operator::modulo}}};
  ExpressionPtr node = power();
  for (;;) {
    const auto sign = std::find_if(kSigns.begin(), kSigns.end(), [&](const auto& s) { return current().is_sign(s.first); });
    if (sign == kSigns.end()) return node;
    take();
    node = make<BinaryNode>(sign->second, std::move(node), power());
  }
}

ExpressionPtr ExpressionParser::power() {
  ExpressionPtr node = unary();
  while (skip_sign("**")) node = make<BinaryNode>(Operator::power, std::move(node), unary());
  return node;
}

ExpressionPtr ExpressionParser::unary(bool with_filters) {
  const Nesting nesting(*this);
  ExpressionPtr node;
  if (skip_sign("-")) {
    node = make<UnaryNode>(Unary::negative, unary(false));
  } else if (skip_sign("+")) {
    node = make<UnaryNode>(Unary::positive, unary(false));
  } else {
    node = primary();
  }
  node = postfix(std::move(node));
  return with_filters ? filters_and_tests(std::move(node)) : std::move(node);
}

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
