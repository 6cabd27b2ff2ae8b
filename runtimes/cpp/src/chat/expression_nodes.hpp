// The expressions of a template.
#pragma once

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "chat/operations.hpp"
#include "chat/syntax.hpp"

namespace l4::chat {

struct ConstNode : Expression {
  explicit ConstNode(Value value) : value(std::move(value)) {}
  Value evaluate(Run&, Activation&) const override { return value; }
  Value value;
};

struct NameNode : Expression {
  explicit NameNode(std::string name) : name(std::move(name)) {}
  void declare(Symbols& symbols) override { symbols.load(name); }
  void bind(Symbols& symbols) override { place = symbols.place(name); }
  void find_undeclared(std::set<std::string>& names, std::set<std::string>& found) override;
  Value evaluate(Run& run, Activation& at) const override;
  std::string name;
  Place place;
};

enum class Brackets { list, tuple };
struct SequenceNode : Expression {
  SequenceNode(Brackets kind, Expressions items) : kind(kind), items(std::move(items)) {}
  void children(const Visit& visit) override;
  Value evaluate(Run& run, Activation& at) const override;
  Brackets kind;
  Expressions items;
};

struct DictNode : Expression {
  void children(const Visit& visit) override;
  Value evaluate(Run& run, Activation& at) const override;
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> items;
};

struct AttributeNode : Expression {
  AttributeNode(ExpressionPtr of, std::string name) : of(std::move(of)), name(std::move(name)) {}
  void children(const Visit& visit) override { visit(*of); }
  Value evaluate(Run& run, Activation& at) const override;
  ExpressionPtr of;
  std::string name;
};

struct ItemNode : Expression {
  ItemNode(ExpressionPtr of, ExpressionPtr key) : of(std::move(of)), key(std::move(key)) {}
  void children(const Visit& visit) override { visit(*of), visit(*key); }
  Value evaluate(Run& run, Activation& at) const override;
  ExpressionPtr of, key;
};

struct SliceNode : Expression {
  void children(const Visit& visit) override;
  Value evaluate(Run& run, Activation& at) const override;
  ExpressionPtr of, start, stop, step;  // the last three may be absent
};

struct ArgumentNodes {
  void children(const Node::Visit& visit);
  bool empty() const { return positional.empty() && named.empty() && !many && !many_named; }
  Expressions positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr many, many_named;  // *many, **many_named
};

struct CallNode : Expression {
  void children(const Visit& visit) override { visit(*callee), arguments.children(visit); }
  Value evaluate(Run& run, Activation& at) const override { return call(run, at, nullptr); }
  Value call(Run& run, Activation& at, const Value* caller) const;
  ExpressionPtr callee;
  ArgumentNodes arguments;
};

struct FilterNode : Expression {
  void children(const Visit& visit) override;
  void bind(Symbols& symbols) override;
  Value evaluate(Run& run, Activation& at) const override;
  Value apply(Run& run, Activation& at, const Value& value) const;
  ExpressionPtr of;  // absent in a filter block
  std::string name;
  ArgumentNodes arguments;
};

struct TestNode : Expression {
  void children(const Visit& visit) override { visit(*of), arguments.children(visit); }
  Value evaluate(Run& run, Activation& at) const override;
  ExpressionPtr of;
  std::string name;
  ArgumentNodes arguments;
};

enum class Unary { negation, negative, positive };
struct UnaryNode : Expression {
  UnaryNode(Unary sign, ExpressionPtr of) : sign(sign), of(std::move(of)) {}
  void children(const Visit& visit) override { visit(*of); }
  Value evaluate(Run& run, Activation& at) const override;
  Unary sign;
  ExpressionPtr of;
};

struct BinaryNode : Expression {
  BinaryNode(Operator sign, ExpressionPtr left, ExpressionPtr right)
      : sign(sign), left(std::move(left)), right(std::move(right)) {}
  void children(const Visit& visit) override { visit(*left), visit(*right); }
  Value evaluate(Run& run, Activation& at) const override;
  Operator sign;
  ExpressionPtr left, right;
};

struct LogicNode : Expression {
  LogicNode(bool is_and, ExpressionPtr left, ExpressionPtr right)
      : is_and(is_and), left(std::move(left)), right(std::move(right)) {}
  void children(const Visit& visit) override { visit(*left), visit(*right); }
  Value evaluate(Run& run, Activation& at) const override;
  bool is_and;
  ExpressionPtr left, right;
};

enum class Comparison { equal, unequal, less, at_most, greater, at_least, in, not_in };
bool compare(Comparison sign, const Value& left, const Value& right, Budget& budget);

struct CompareNode : Expression {
  void children(const Visit& visit) override;
  Value evaluate(Run& run, Activation& at) const override;
  ExpressionPtr first;
  std::vector<std::pair<Comparison, ExpressionPtr>> others;
};

struct ConcatNode : Expression {
  explicit ConcatNode(Expressions parts) : parts(std::move(parts)) {}
  void children(const Visit& visit) override;
  Value evaluate(Run& run, Activation& at) const override;
  Expressions parts;
};

struct ConditionalNode : Expression {
  void children(const Visit& visit) override;
  Value evaluate(Run& run, Activation& at) const override;
  int line = 0;
  ExpressionPtr test, then, otherwise;  // the last may be absent
};

}  // namespace l4::chat
