#include "chat/expression_parser.hpp"

#include <algorithm>
#include <array>

#include "chat/failure.hpp"
#include "chat/parser.hpp"

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

}  // namespace

bool is_constant(std::string_view name) {
  static constexpr std::array<std::string_view, 6> kNames = {"true", "false", "none", "True", "False", "None"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.nesting_ > kMostNesting) throw TemplateError("it is nested too deeply");
}

const Token& ExpressionParser::expect(TokenKind kind) {
  if (!current().is(kind)) {
    throw TemplateError("expected token '" + described({kind, "name", 0}) + "', got '" + described(current()) + "'");
  }
  return take();
}

void ExpressionParser::expect_sign(std::string_view sign) {
  if (!skip_sign(sign)) {
    throw TemplateError("expected token '" + std::string(sign) + "', got '" + described(current()) + "'");
  }
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!skip_name(name)) {
    throw TemplateError("expected token '" + std::string(name) + "', got '" + described(current()) + "'");
  }
}

bool ExpressionParser::skip_sign(std::string_view sign) { return current().is_sign(sign) && (take(), true); }

bool ExpressionParser::skip_name(std::string_view name) { return current().is_name(name) && (take(), true); }

bool ExpressionParser::ends_tuple(const std::vector<std::string_view>& ends) const {
  if (current().is(TokenKind::variable_end) || current().is(TokenKind::block_end) || current().is_sign(")")) {
    return true;
  }
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

ExpressionPtr ExpressionParser::tuple(bool conditional, const std::vector<std::string_view>& ends,
                                      bool in_parentheses) {
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
    const auto sign =
        std::find_if(kSigns.begin(), kSigns.end(), [&](const auto& s) { return current().is_sign(s.first); });
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
    const auto sign =
        std::find_if(kSigns.begin(), kSigns.end(), [&](const auto& s) { return current().is_sign(s.first); });
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

}  // namespace l4::chat
