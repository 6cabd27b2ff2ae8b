// The tree of a template. Its nodes know their names (`declare`, `bind`) and do what they say (`evaluate`, `execute`).
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

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

}  // namespace l4::chat
