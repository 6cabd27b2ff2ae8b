// The nodes' part of name resolution: which frames and functions there are, and what is visited in which of them.
#include <algorithm>

#include "chat/failure.hpp"
#include "chat/statement_nodes.hpp"

namespace l4::chat {

void Node::measure() {
  int deepest = 0;
  children([&](Node& child) { deepest = std::max(deepest, child.depth); });
  depth = deepest + 1;
  if (depth > kMostTreeDepth) throw TemplateError("it is nested too deeply");
}

void Node::declare(Symbols& symbols) {
  children([&](Node& child) { child.declare(symbols); });
}

void Node::bind(Symbols& symbols) {
  children([&](Node& child) { child.bind(symbols); });
}

void Node::find_undeclared(std::set<std::string>& names, std::set<std::string>& found) {
  children([&](Node& child) { child.find_undeclared(names, found); });
}

void NameNode::find_undeclared(std::set<std::string>& names, std::set<std::string>& found) {
  if (names.count(name) != 0) found.insert(name);
}

namespace {

template <typename Nodes>
void visit_all(const Nodes& nodes, const Node::Visit& visit) {
  for (const auto& node : nodes) visit(*node);
}

template <typename Nodes>
void declare_all(const Nodes& nodes, Symbols& symbols) {
  for (const auto& node : nodes) node->declare(symbols);
}

template <typename Nodes>
void bind_all(const Nodes& nodes, Symbols& symbols) {
  for (const auto& node : nodes) node->bind(symbols);
}

std::set<std::string> undeclared_in(const Body& body, std::set<std::string> names) {
  std::set<std::string> found;
  for (const auto& statement : body) statement->find_undeclared(names, found);
  return found;
}

bool stores_loop(Node& node) {
  const auto* target = dynamic_cast<Target*>(&node);
  bool found = target != nullptr && target->stores("loop");
  node.children([&](Node& child) { found = found || stores_loop(child); });
  return found;
}

}  // namespace

void ArgumentNodes::children(const Node::Visit& visit) {
  visit_all(positional, visit);
  for (const auto& [name, value] : named) visit(*value);
  if (many) visit(*many);
  if (many_named) visit(*many_named);
}

void SequenceNode::children(const Visit& visit) { visit_all(items, visit); }
void ConcatNode::children(const Visit& visit) { visit_all(parts, visit); }
void OutputNode::children(const Visit& visit) { visit_all(parts, visit); }
void TupleTarget::children(const Visit& visit) { visit_all(items, visit); }
void TemplateNode::children(const Visit& visit) { visit_all(body, visit); }

void DictNode::children(const Visit& visit) {
  for (const auto& [key, value] : items) visit(*key), visit(*value);
}

void SliceNode::children(const Visit& visit) {
  visit(*of);
  for (const ExpressionPtr* part : {&start, &stop, &step}) {
    if (*part) visit(**part);
  }
}

void FilterNode::children(const Visit& visit) {
  if (of) visit(*of);
  arguments.children(visit);
}

void FilterNode::bind(Symbols& symbols) {
  if (name == "safe") throw Unsupported("the filter 'safe' where its result is not written at once");
  Node::bind(symbols);
}

void CompareNode::children(const Visit& visit) {
  visit(*first);
  for (const auto& [sign, other] : others) visit(*other);
}

void ConditionalNode::children(const Visit& visit) {
  visit(*test), visit(*then);
  if (otherwise) visit(*otherwise);
}

void ForNode::children(const Visit& visit) {
  visit(*target), visit(*iterable);
  visit_all(body, visit);
  visit_all(otherwise, visit);
  if (test) visit(*test);
}

void IfNode::children(const Visit& visit) {
  for (const Branch& branch : branches) {
    visit(*branch.test);
    visit_all(branch.body, visit);
  }
  visit_all(otherwise, visit);
}

void SetBlockNode::children(const Visit& visit) {
  visit(*target);
  if (filter) visit(*filter);
  visit_all(body, visit);
}

void FilterBlockNode::children(const Visit& visit) {
  visit_all(body, visit);
  visit(*filter);
}

void WithNode::children(const Visit& visit) {
  visit_all(targets, visit);
  visit_all(values, visit);
  visit_all(body, visit);
}

void Callable::children(const Visit& visit) {
  for (NameTarget& argument : arguments) visit(argument);
  visit_all(defaults, visit);
  visit_all(body, visit);
}

void CallBlockNode::children(const Visit& visit) {
  if (call) visit(*call);
  visit(callable);
}

void TupleTarget::declare_as_parameter(Symbols& symbols) {
  for (const TargetPtr& item : items) item->declare_as_parameter(symbols);
}

bool TupleTarget::stores(const std::string& other) const {
  return std::any_of(items.begin(), items.end(), [&](const TargetPtr& item) { return item->stores(other); });
}

void ForNode::bind(Symbols& outer) {
  if (stores_loop(*this)) throw TemplateError("Can't assign to special loop variable in for-loop target");
  iterable->bind(outer);
  const auto new_function = [&] {
    auto made = std::make_unique<FunctionScope>();
    made->outer = outer.function();
    return made;
  };
  if (recursive) function = new_function();
  Symbols symbols(&outer, function ? function.get() : outer.function());
  if (recursive || !undeclared_in(body, {"loop"}).empty()) loop_slot = symbols.declare_parameter("loop");
  target->declare_as_parameter(symbols);
  declare_all(body, symbols);
  target->bind(symbols);
  bind_all(body, symbols);
  frame = symbols.frame();
  Symbols else_symbols(&outer, symbols.function());
  declare_all(otherwise, else_symbols);
  bind_all(otherwise, else_symbols);
  else_frame = else_symbols.frame();
  if (!test) return;
  test_function = new_function();
  symbols.spend(symbols.function()->slots.size());
  test_function->slots = symbols.function()->slots;  // so that the target's variables are the same there
  Symbols test_symbols(&outer, test_function.get());
  target->declare_as_parameter(test_symbols);
  test->declare(test_symbols);
  test->bind(test_symbols);
  test_frame = test_symbols.frame();
}

void IfNode::declare(Symbols& symbols) {
  // as jinja2 has it: the conditions of elif are visited with their branches
  branches[0].test->declare(symbols);
  std::vector<Symbols> seen{symbols.branch(), symbols.branch(), symbols.branch()};
  declare_all(branches[0].body, seen[0]);
  for (std::size_t i = 1; i < branches.size(); ++i) {
    branches[i].test->declare(seen[1]);
    std::vector<Symbols> branch{seen[1].branch()};
    declare_all(branches[i].body, branch[0]);
    seen[1].merge(branch);
  }
  declare_all(otherwise, seen[2]);
  symbols.merge(seen);
}

void SetBlockNode::bind(Symbols& outer) {
  Symbols symbols(&outer, outer.function());
  declare_all(body, symbols);
  bind_all(body, symbols);
  target->bind(outer);
  if (filter) filter->bind(symbols);
  frame = symbols.frame();
}

void FilterBlockNode::bind(Symbols& outer) {
  Symbols symbols(&outer, outer.function());
  declare_all(body, symbols);
  filter->declare(symbols);
  bind_all(body, symbols);
  filter->bind(symbols);
  frame = symbols.frame();
}

void WithNode::declare(Symbols& symbols) { declare_all(values, symbols); }

void WithNode::bind(Symbols& outer) {
  bind_all(values, outer);
  Symbols symbols(&outer, outer.function());
  for (const TargetPtr& target : targets) target->declare_as_parameter(symbols);
  declare_all(body, symbols);
  bind_all(targets, symbols);
  bind_all(body, symbols);
  frame = symbols.frame();
}

void Callable::bind(Symbols& outer) {
  function.outer = outer.function();
  Symbols symbols(&outer, &function);
  for (NameTarget& argument : arguments) symbols.declare_parameter(argument.name);
  declare_all(defaults, symbols);
  declare_all(body, symbols);
  const std::set<std::string> special = undeclared_in(body, {"caller", "kwargs", "varargs"});
  const auto argument_named = [&](const char* name) {
    return std::find_if(arguments.begin(), arguments.end(),
                        [&](const NameTarget& argument) { return argument.name == name; });
  };
  if (special.count("caller") != 0) {
    const auto explicit_caller = argument_named("caller");
    if (explicit_caller == arguments.end()) {
      caller_slot = symbols.declare_parameter("caller");
    } else if (arguments.end() - explicit_caller > static_cast<std::ptrdiff_t>(defaults.size())) {
      throw TemplateError(
          "When defining macros or call blocks the special \"caller\" argument must be omitted or be given a default.");
    }
  }
  if (special.count("kwargs") != 0 && argument_named("kwargs") == arguments.end()) {
    named_slot = symbols.declare_parameter("kwargs");
  }
  if (special.count("varargs") != 0 && argument_named("varargs") == arguments.end()) {
    many_slot = symbols.declare_parameter("varargs");
  }
  for (NameTarget& argument : arguments) argument.bind(symbols);
  bind_all(defaults, symbols);
  bind_all(body, symbols);
  frame = symbols.frame();
}

void MacroNode::bind(Symbols& symbols) {
  callable.bind(symbols);
  slot = symbols.place(callable.name).slot;
}

void CallBlockNode::bind(Symbols& symbols) {
  callable.bind(symbols);
  if (call) call->bind(symbols);
}

void TemplateNode::bind_all() {
  Symbols symbols(nullptr, &function);
  declare_all(body, symbols);
  chat::bind_all(body, symbols);
  frame = symbols.frame();
}

}  // namespace l4::chat
