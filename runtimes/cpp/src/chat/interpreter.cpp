#include "chat/interpreter.hpp"

#include <algorithm>

#include "chat/functions.hpp"
#include "chat/loop.hpp"
#include "chat/methods.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"
#include "chat/statement_nodes.hpp"

namespace l4::chat {

Activation::Activation(Activation* outer, const FunctionScope& function, Budget& budget) : outer(outer) {
  budget.make(sizeof(Activation) + function.slots.size() * sizeof(std::optional<Value>));
  slots.resize(function.slots.size());
}

void Activation::enter(const Frame& frame, Run& run) {
  run.budget.step(frame.size());
  for (const FrameLoad& load : frame) {
    switch (load.load) {
      case Load::parameter: break;
      case Load::resolve: slot(load.slot) = run.resolve(load.name); break;
      case Load::alias: slot(load.slot) = at(load.from); break;
      case Load::undefined: slot(load.slot).reset(); break;
    }
  }
}

void Activation::leave(const Frame& frame) {
  for (const FrameLoad& load : frame) slot(load.slot).reset();
}

void Activation::capture() {
  for (Activation* activation = this; activation != nullptr; activation = activation->outer) {
    activation->captured = true;
  }
}

const std::string& macro_name(const Macro& macro) { return macro.callable->name; }

void Run::write(const Value& value) {
  const std::size_t begin = output_->text.size();
  append_text(output_->text, value, budget);
  if (output_->left == SIZE_MAX) return;
  const std::size_t points = utf8_length(std::string_view(output_->text).substr(begin));
  if (points > output_->left) throw LimitExceeded("it writes more than " + std::to_string(longest_) + " characters");
  output_->left -= points;
}

Value Run::Capture::text() { return std::move(inner_.text); }

Run::Deeper::Deeper(Run& run, int nodes) : run_(run), nodes_(nodes) {
  if (run.depth_ + nodes > kMostCalls) throw TemplateError("it is nested too deeply");
  run.depth_ += nodes;
}

std::optional<Value> Run::resolve(const std::string& name) const {
  if (const auto found = variables_.find(name); found != variables_.end()) return found->second;
  return environment_function(name);
}

Namespace* Run::make_namespace() {
  budget.make(sizeof(Namespace));
  namespaces_.push_back(std::make_unique<Namespace>());
  return namespaces_.back().get();
}

const Macro* Run::make_macro(const Callable& callable, Activation& at) {
  budget.make(sizeof(Macro));
  at.capture();
  macros_.push_back(std::make_unique<Macro>(Macro{&callable, &at}));
  return macros_.back().get();
}

void Run::keep(std::unique_ptr<Activation> activation) {
  if (activation->captured) activations_.push_back(std::move(activation));
}

void Run::remember(const Value& loop) {
  budget.make(sizeof(Value));
  remembering_.push_back(loop);
}

// Loops that hold themselves would stay for ever.
Run::~Run() {
  for (const Value& loop : remembering_) loop.loop().changed.reset();
}

Value Run::call(const Value& callee, Arguments arguments) {
  budget.step();
  switch (callee.kind()) {
    case Kind::undefined: fail_undefined(callee);
    case Kind::macro: return call_macro(callee.macro(), std::move(arguments));
    case Kind::function: return call_function(*this, callee.function(), arguments);
    case Kind::method: return call_method(*this, callee.method(), arguments);
    case Kind::loop: {
      const Loop& loop = callee.loop();
      if (loop.recursion == nullptr) {
        throw type_error("The loop must have the 'recursive' marker to be called recursively.");
      }
      if (arguments.positional.size() != 1 || !arguments.named.empty()) {
        throw type_error("LoopContext.__call__() takes 1 positional argument");
      }
      Capture capture(*this);
      loop.recursion->loop(*this, *loop.outer, arguments.positional[0], loop.depth0 + 1);
      return capture.text();
    }
    default: throw type_error(std::string("'") + type_name(callee) + "' object is not callable");
  }
}

Value Run::call_macro(const Macro& macro, Arguments arguments) {
  const Callable& callable = *macro.callable;
  const Deeper deeper(*this, callable.depth);
  auto activation = std::make_unique<Activation>(macro.at, callable.function, budget);
  const auto take_named = [&](const std::string& name) -> std::optional<Value> {
    for (auto named = arguments.named.begin(); named != arguments.named.end(); ++named) {
      if (named->first != name) continue;
      Value value = std::move(named->second);
      arguments.named.erase(named);
      return value;
    }
    return std::nullopt;
  };
  const std::size_t count = callable.arguments.size(), given = arguments.positional.size();
  bool found_caller = false;
  for (std::size_t i = 0; i < count; ++i) {
    const NameTarget& argument = callable.arguments[i];
    found_caller = found_caller || argument.name == "caller";
    activation->slot(argument.slot) = i < given ? arguments.positional[i] : take_named(argument.name);
  }
  if (callable.caller_slot >= 0 && !found_caller) {
    std::optional<Value> caller = take_named("caller");
    activation->slot(callable.caller_slot) =
        caller && !caller->is_none() ? *caller : make_undefined("No caller defined");
  }
  if (callable.named_slot >= 0) {
    Dict rest;
    for (auto& [name, value] : arguments.named) rest.set(name, std::move(value));
    activation->slot(callable.named_slot) = make_dict(std::move(rest));
  } else if (!arguments.named.empty()) {
    throw type_error("macro " + repr(callable.name) + " takes no keyword argument " + repr(arguments.named[0].first));
  }
  if (callable.many_slot >= 0) {
    const auto rest = arguments.positional.begin() + static_cast<std::ptrdiff_t>(std::min(count, given));
    activation->slot(callable.many_slot) = make_tuple(std::vector<Value>(rest, arguments.positional.end()));
  } else if (given > count) {
    throw type_error("macro " + repr(callable.name) + " takes not more than " + std::to_string(count) + " argument(s)");
  }
  activation->enter(callable.frame, *this);
  for (std::size_t i = 0; i < count; ++i) {
    const NameTarget& argument = callable.arguments[i];
    std::optional<Value>& slot = activation->slot(argument.slot);
    if (slot) continue;
    const std::size_t first = count - callable.defaults.size();
    slot = i >= first ? callable.defaults[i - first]->evaluate(*this, *activation)
                      : make_undefined("parameter " + repr(argument.name) + " was not provided");
  }
  Capture capture(*this);
  for (const auto& statement : callable.body) statement->execute(*this, *activation);
  Value text = capture.text();
  keep(std::move(activation));
  return text;
}

}  // namespace l4::chat
