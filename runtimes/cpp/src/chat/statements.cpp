// What statements and assignments do.
#include "chat/interpreter.hpp"
#include "chat/items.hpp"
#include "chat/loop.hpp"
#include "chat/statement_nodes.hpp"

namespace l4::chat {

namespace {

Flow execute_all(const Body& body, Run& run, Activation& at) {
  for (const auto& statement : body) {
    run.budget.step();
    if (const Flow flow = statement->execute(run, at); flow != Flow::next) return flow;
  }
  return Flow::next;
}

// Execute a body in a frame of its own, and give `take` what it writes.
template <typename Take>
Flow captured(const Body& body, const Frame& frame, Run& run, Activation& at, Take&& take) {
  at.enter(frame, run);
  Value text;
  {
    Run::Capture capture(run);
    if (const Flow flow = execute_all(body, run, at); flow != Flow::next) return flow;
    text = capture.text();
  }
  take(text);
  at.leave(frame);
  return Flow::next;
}

Value filtered(const FilterNode& filter, Run& run, Activation& at, const Value& text) {
  // a chain: the innermost filter is that of the text
  const auto* inner = static_cast<const FilterNode*>(filter.of.get());
  return filter.apply(run, at, inner == nullptr ? text : filtered(*inner, run, at, text));
}

}  // namespace

// ---- Assignments ----

void NameTarget::assign(Run&, Activation& at, const Value& value) const { at.slot(slot) = value; }

void TupleTarget::assign(Run& run, Activation& at, const Value& value) const {
  if (!is_iterable(value)) throw type_error(std::string("cannot unpack non-iterable ") + type_name(value) + " object");
  const std::vector<Value> values = items_of(value, run.budget);
  if (values.size() > items.size()) {
    throw value_error("too many values to unpack (expected " + std::to_string(items.size()) + ")");
  }
  if (values.size() < items.size()) {
    throw value_error("not enough values to unpack (expected " + std::to_string(items.size()) + ", got " +
                      std::to_string(values.size()) + ")");
  }
  for (std::size_t i = 0; i < values.size(); ++i) items[i]->assign(run, at, values[i]);
}

void TupleTarget::check(const Activation& at) const {
  for (const TargetPtr& item : items) item->check(at);
}

void MemberTarget::check(const Activation& at) const {
  const std::optional<Value>& value = at.at(place);
  if (!value || !value->is(Kind::name_space)) throw TemplateError("cannot assign attribute on non-namespace object");
}

void MemberTarget::assign(Run& run, Activation& at, const Value& value) const {
  check(at);
  if (member[0] == '_') throw TemplateError("the name '" + member + "' of a namespace starts with an underscore");
  run.budget.make(4 * sizeof(Value));
  at.at(place)->name_space().values.set(member, value);
}

// ---- Statements ----

Flow OutputNode::execute(Run& run, Activation& at) const {
  for (const ExpressionPtr& part : parts) run.write(part->evaluate(run, at));
  return Flow::next;
}

Flow ForNode::execute(Run& run, Activation& at) const {
  return loop(run, at, iterable->evaluate(run, at), 0);
}

Flow ForNode::loop(Run& run, Activation& outer, const Value& items, int depth0) const {
  std::unique_ptr<Activation> own;
  if (recursive) own = std::make_unique<Activation>(&outer, *function, run.budget);
  Activation& at = recursive ? *own : outer;
  const std::optional<Run::Deeper> deeper = recursive ? std::make_optional<Run::Deeper>(run, depth) : std::nullopt;

  auto state = std::make_shared<Loop>(items, run.budget);
  state->depth0 = depth0;
  if (recursive) state->recursion = this, state->outer = &outer;
  if (test) state->accepts = condition(run, outer);
  if (loop_slot >= 0 && (recursive || test)) outer.capture();

  bool went = false;
  Flow flow = Flow::next;
  for (Value item; flow != Flow::breaks && state->advance(item);) {
    run.budget.step();
    went = true;
    if (loop_slot >= 0) at.slot(loop_slot) = state;
    target->assign(run, at, item);
    at.enter(frame, run);
    flow = execute_all(body, run, at);
  }
  at.leave(frame);
  flow = Flow::next;
  if (!went && !otherwise.empty()) {
    at.enter(else_frame, run);
    flow = execute_all(otherwise, run, at);
    at.leave(else_frame);
  }
  if (own) run.keep(std::move(own));
  return flow;
}

// The condition of the loop, as a function of an item with variables of its own.
std::function<bool(const Value&)> ForNode::condition(Run& run, Activation& outer) const {
  const auto own = std::make_shared<Activation>(&outer, *test_function, run.budget);
  own->enter(test_frame, run);
  return [this, &run, own](const Value& item) {
    target->assign(run, *own, item);
    return truth(test->evaluate(run, *own));
  };
}

Flow IfNode::execute(Run& run, Activation& at) const {
  for (const Branch& branch : branches) {
    if (truth(branch.test->evaluate(run, at))) return execute_all(branch.body, run, at);
  }
  return execute_all(otherwise, run, at);
}

Flow SetNode::execute(Run& run, Activation& at) const {
  target->check(at);
  target->assign(run, at, value->evaluate(run, at));
  return Flow::next;
}

Flow SetBlockNode::execute(Run& run, Activation& at) const {
  return captured(body, frame, run, at, [&](const Value& text) {
    target->assign(run, at, filter ? filtered(*filter, run, at, text) : text);
  });
}

Flow FilterBlockNode::execute(Run& run, Activation& at) const {
  return captured(body, frame, run, at, [&](const Value& text) { run.write(filtered(*filter, run, at, text)); });
}

Flow WithNode::execute(Run& run, Activation& at) const {
  at.enter(frame, run);
  for (std::size_t i = 0; i < targets.size(); ++i) targets[i]->assign(run, at, values[i]->evaluate(run, at));
  const Flow flow = execute_all(body, run, at);
  if (flow == Flow::next) at.leave(frame);
  return flow;
}

Flow MacroNode::execute(Run& run, Activation& at) const {
  at.slot(slot) = Value(run.make_macro(callable, at));
  return Flow::next;
}

Flow CallBlockNode::execute(Run& run, Activation& at) const {
  const Value caller(run.make_macro(callable, at));
  run.write(call ? call->call(run, at, &caller) : run.call_macro(caller.macro(), {}));
  return Flow::next;
}

}  // namespace l4::chat
