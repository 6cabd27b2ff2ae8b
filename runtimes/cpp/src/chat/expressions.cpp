// What expressions evaluate to.
#include "chat/filters.hpp"
#include "chat/interpreter.hpp"
#include "chat/items.hpp"
#include "chat/printing.hpp"
#include "chat/expression_nodes.hpp"
#include "chat/tests.hpp"

namespace l4::chat {

namespace {

std::vector<Value> evaluated(const Expressions& expressions, Run& run, Activation& at) {
  run.budget.make(sizeof(Sequence) + expressions.size() * sizeof(Value));
  std::vector<Value> values;
  values.reserve(expressions.size());
  for (const ExpressionPtr& expression : expressions) values.push_back(expression->evaluate(run, at));
  return values;
}

Arguments evaluated(const ArgumentNodes& nodes, Run& run, Activation& at) {
  Arguments arguments{evaluated(nodes.positional, run, at), {}};
  if (nodes.many) {
    for (Value& value : items_of(nodes.many->evaluate(run, at), run.budget)) {
      arguments.positional.push_back(std::move(value));
    }
  }
  for (const auto& [name, value] : nodes.named) arguments.named.emplace_back(name, value->evaluate(run, at));
  if (!nodes.many_named) return arguments;
  const Value many = nodes.many_named->evaluate(run, at);
  if (!many.is(Kind::dict)) {
    throw type_error(std::string("argument after ** must be a mapping, not ") + type_name(many));
  }
  for (const auto& [key, value] : many.dict().items()) {
    if (!key.is_text()) throw type_error("keywords must be strings");
    run.budget.make(sizeof(Value) + key.string().size());
    for (const auto& [name, other] : nodes.named) {
      if (name == key.string()) throw type_error("got multiple values for keyword argument '" + name + "'");
    }
    arguments.named.emplace_back(key.string(), value);
  }
  return arguments;
}

}  // namespace

Value NameNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  const std::optional<Value>& value = at.at(place);
  return value ? *value : make_undefined(repr(name) + " is undefined");
}

Value SequenceNode::evaluate(Run& run, Activation& at) const {
  std::vector<Value> values = evaluated(items, run, at);
  return kind == Brackets::tuple ? make_tuple(std::move(values)) : make_list(std::move(values));
}

Value DictNode::evaluate(Run& run, Activation& at) const {
  Dict dict;
  run.budget.make(sizeof(Dict));
  for (const auto& [key, value] : items) {
    run.budget.make(4 * sizeof(Value));
    const Value name = key->evaluate(run, at);
    dict.set(name, value->evaluate(run, at), run.budget);
  }
  return make_dict(std::move(dict));
}

Value AttributeNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  return attribute_of(of->evaluate(run, at), name, run.budget);
}

Value ItemNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  const Value value = of->evaluate(run, at);
  return item_of(value, key->evaluate(run, at), run.budget);
}

Value SliceNode::evaluate(Run& run, Activation& at) const {
  const Value value = of->evaluate(run, at);
  const auto bound = [&](const ExpressionPtr& part) { return part ? part->evaluate(run, at) : Value(nullptr); };
  const Value from = bound(start), to = bound(stop), by = bound(step);
  return slice(value, from, to, by, run.budget);
}

Value CallNode::call(Run& run, Activation& at, const Value* caller) const {
  const Value called = callee->evaluate(run, at);
  Arguments given = evaluated(arguments, run, at);
  if (caller != nullptr) given.named.emplace_back("caller", *caller);
  return run.call(called, std::move(given));
}

Value FilterNode::apply(Run& run, Activation& at, const Value& value) const {
  return apply_filter(run, name, value, evaluated(arguments, run, at));
}

Value FilterNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  return apply(run, at, of->evaluate(run, at));
}

Value TestNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  const Value value = of->evaluate(run, at);
  return apply_test(run, name, value, evaluated(arguments, run, at));
}

Value UnaryNode::evaluate(Run& run, Activation& at) const {
  const Value value = of->evaluate(run, at);
  switch (sign) {
    case Unary::negation: return !truth(value);
    case Unary::negative: return negative(value);
    case Unary::positive: return positive(value);
  }
  return value;
}

Value BinaryNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  const Value first = left->evaluate(run, at);
  return compute(sign, first, right->evaluate(run, at), run.budget);
}

Value LogicNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  Value first = left->evaluate(run, at);
  return truth(first) == is_and ? right->evaluate(run, at) : first;
}

bool compare(Comparison sign, const Value& left, const Value& right, Budget& budget) {
  switch (sign) {
    case Comparison::equal: return equals(left, right, budget);
    case Comparison::unequal: return !equals(left, right, budget);
    case Comparison::less: return less(left, right, "<", budget);
    case Comparison::at_most: return at_most(left, right, "<=", budget);
    case Comparison::greater: return less(right, left, ">", budget);
    case Comparison::at_least: return at_most(right, left, ">=", budget);
    case Comparison::in: return contains(right, left, budget);
    case Comparison::not_in: return !contains(right, left, budget);
  }
  return false;
}

Value CompareNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  Value left = first->evaluate(run, at);
  for (const auto& [sign, other] : others) {
    Value right = other->evaluate(run, at);
    if (!compare(sign, left, right, run.budget)) return false;
    left = std::move(right);
  }
  return true;
}

Value ConcatNode::evaluate(Run& run, Activation& at) const {
  std::string text;
  const std::vector<Value> values = evaluated(parts, run, at);
  for (const Value& value : values) append_text(text, value, run.budget);
  return text;
}

Value ConditionalNode::evaluate(Run& run, Activation& at) const {
  run.budget.step();
  if (truth(test->evaluate(run, at))) return then->evaluate(run, at);
  if (otherwise) return otherwise->evaluate(run, at);
  return make_undefined("the inline if-expression on line " + std::to_string(line) +
                        " evaluated to false and no else section was defined.");
}

}  // namespace l4::chat
