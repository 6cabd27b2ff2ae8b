// The statements of a template, and what they assign to.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "chat/expression_nodes.hpp"
#include "chat/syntax.hpp"

namespace l4::chat {

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
