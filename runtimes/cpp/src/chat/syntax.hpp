// The tree of a template. Its nodes know their names (`declare`, `bind`) and do what they say (`evaluate`, `execute`).
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "chat/operations.hpp"
#include "chat/scopes.hpp"
#include "chat/value.hpp"

namespace l4::chat {

struct Activation;
class Run;

class Node {
 public:
  virtual ~Node() = default;

  using Visit = std::function<void(Node&)>;
  virtual void children(const Visit&) {}  // in jinja2's order

  // Set `depth` from the children's. Raises TemplateError where there are too many in one another.
  void measure();

  // Tell the symbols of the frame around it which names it loads and stores.
  virtual void declare(Symbols& symbols);
  // Find the places of its names. The frame's symbols are complete by now.
  virtual void bind(Symbols& symbols);
  // Remove from `names` what it stores, and move to `found` what it loads of them: jinja2's find_undeclared.
  virtual void find_undeclared(std::set<std::string>& names, std::set<std::string>& found);

  int depth = 1;  // of the tree that it is the root of
};

constexpr int kMostTreeDepth = 400;

class Expression : public Node {
 public:
  virtual Value evaluate(Run& run, Activation& at) const = 0;
};
using ExpressionPtr = std::unique_ptr<Expression>;
using Expressions = std::vector<ExpressionPtr>;

enum class Flow { next, breaks, continues };  // what becomes of the loop around a statement

class Statement : public Node {
 public:
  virtual Flow execute(Run& run, Activation& at) const = 0;
};
using Body = std::vector<std::unique_ptr<Statement>>;

// What a value is assigned to.
class Target : public Node {
 public:
  virtual void assign(Run& run, Activation& at, const Value& value) const = 0;
  virtual void declare_as_parameter(Symbols& symbols) = 0;
  // Raise where a part of it is an attribute of what is no namespace.
  virtual void check(const Activation&) const {}
  virtual bool stores(const std::string& name) const = 0;
};
using TargetPtr = std::unique_ptr<Target>;

// ---- Expressions ----

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
  BinaryNode(Operator sign, ExpressionPtr left, ExpressionPtr right) : sign(sign), left(std::move(left)), right(std::move(right)) {}
  void children(const Visit& visit) override { visit(*left), visit(*right); }
  Value evaluate(Run& run, Activation& at) const override;
  Operator sign;
  ExpressionPtr left, right;
};

struct LogicNode : Expression {
  LogicNode(bool is_and, ExpressionPtr left, ExpressionPtr right) : is_and(is_and), left(std::move(left)), right(std::move(right)) {}
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

// ---- Targets ----

struct NameTarget : Target {
  explicit NameTarget(std::string name) : name(std::move(name)) {}
  void declare(Symbols& symbols) override { symbols.store(name); }
  void declare_as_parameter(Symbols& symbols) override { symbols.declare_parameter(name); }
  void bind(Symbols& symbols) override { slot = symbols.place(name).slot; }
  void find_undeclared(std::set<std::string>& names, std::set<std::string>&) override { names.erase(name); }
  void assign(Run& run, Activation& at, const Value& value) const override;
  bool stores(const std::string& other) const override { return name == other; }
  std::string name;
  int slot = 0;
};

struct TupleTarget : Target {
  void children(const Visit& visit) override;
  void declare_as_parameter(Symbols& symbols) override;
  void assign(Run& run, Activation& at, const Value& value) const override;
  void check(const Activation& at) const override;
  bool stores(const std::string& other) const override;
  std::vector<TargetPtr> items;
};

struct MemberTarget : Target {  // of a namespace
  MemberTarget(std::string name, std::string member) : name(std::move(name)), member(std::move(member)) {}
  void declare(Symbols& symbols) override { symbols.load(name); }
  void declare_as_parameter(Symbols& symbols) override { declare(symbols); }
  void bind(Symbols& symbols) override { place = symbols.place(name); }
  void assign(Run& run, Activation& at, const Value& value) const override;
  void check(const Activation& at) const override;
  bool stores(const std::string&) const override { return false; }
  std::string name, member;
  Place place;
};

// ---- Statements ----

struct OutputNode : Statement {
  void children(const Visit& visit) override;
  Flow execute(Run& run, Activation& at) const override;
  Expressions parts;
};

struct ForNode : Statement {
  void children(const Visit& visit) override;
  void declare(Symbols& symbols) override { iterable->declare(symbols); }
  void bind(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  // Go through the items, in an activation of its own where the loop is recursive.
  Flow loop(Run& run, Activation& outer, const Value& items, int depth0) const;
  std::function<bool(const Value&)> condition(Run& run, Activation& outer) const;

  TargetPtr target;
  ExpressionPtr iterable, test;  // the latter may be absent
  Body body, otherwise;
  bool recursive = false;

  std::unique_ptr<FunctionScope> function, test_function;  // its own ones, where it has such
  Frame frame, else_frame, test_frame;
  int loop_slot = -1;  // of the variable `loop`; -1: it is not used
};

struct IfNode : Statement {
  struct Branch {
    ExpressionPtr test;
    Body body;
  };
  void children(const Visit& visit) override;
  void declare(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  std::vector<Branch> branches;
  Body otherwise;
};

struct SetNode : Statement {
  void children(const Visit& visit) override { visit(*target), visit(*value); }
  void declare(Symbols& symbols) override { value->declare(symbols), target->declare(symbols); }
  Flow execute(Run& run, Activation& at) const override;
  TargetPtr target;
  ExpressionPtr value;
};

struct SetBlockNode : Statement {
  void children(const Visit& visit) override;
  void declare(Symbols& symbols) override { target->declare(symbols); }
  void bind(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  TargetPtr target;
  std::unique_ptr<FilterNode> filter;  // the last of a chain; may be absent
  Body body;
  Frame frame;
};

struct FilterBlockNode : Statement {
  void children(const Visit& visit) override;
  void declare(Symbols& symbols) override { filter->declare(symbols); }
  void bind(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  std::unique_ptr<FilterNode> filter;
  Body body;
  Frame frame;
};

struct WithNode : Statement {
  void children(const Visit& visit) override;
  void declare(Symbols& symbols) override;
  void bind(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  std::vector<TargetPtr> targets;
  Expressions values;
  Body body;
  Frame frame;
};

// What a macro and a call block have in common: a function with arguments.
struct Callable : Node {
  void children(const Visit& visit) override;
  void bind(Symbols& symbols) override;

  std::string name;
  std::vector<NameTarget> arguments;
  Expressions defaults;  // of the last arguments
  Body body;

  FunctionScope function;
  Frame frame;
  int caller_slot = -1, named_slot = -1, many_slot = -1;  // of `caller`, `kwargs` and `varargs`; -1: not used
};

struct MacroNode : Statement {
  void children(const Visit& visit) override { visit(callable); }
  void declare(Symbols& symbols) override { symbols.store(callable.name); }
  void bind(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  Callable callable;
  int slot = 0;
};

struct CallBlockNode : Statement {
  void children(const Visit& visit) override;
  void declare(Symbols& symbols) override { if (call) call->declare(symbols); }
  void bind(Symbols& symbols) override;
  Flow execute(Run& run, Activation& at) const override;
  std::unique_ptr<CallNode> call;  // absent in `generation`, which writes its body as it is
  Callable callable;
};

struct LoopControlNode : Statement {
  explicit LoopControlNode(Flow flow) : flow(flow) {}
  Flow execute(Run&, Activation&) const override { return flow; }
  Flow flow;
};

// A whole template.
struct TemplateNode : Node {
  void children(const Visit& visit) override;
  void bind_all();
  Body body;
  FunctionScope function;
  Frame frame;
};

}  // namespace l4::chat
