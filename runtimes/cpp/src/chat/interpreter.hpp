// A run of a template: its variables, what it writes, and what it may still take.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chat/budget.hpp"
#include "chat/scopes.hpp"
#include "chat/value.hpp"

namespace l4::chat {

struct Callable;
class Run;

// The variables of one call of a function.
struct Activation {
  Activation(Activation* outer, const FunctionScope& function, Budget& budget);

  const std::optional<Value>& at(Place place) const {
    const Activation* activation = this;
    for (int hop = 0; hop < place.hops; ++hop) activation = activation->outer;
    return activation->slots[static_cast<std::size_t>(place.slot)];
  }
  std::optional<Value>& slot(int slot) { return slots[static_cast<std::size_t>(slot)]; }

  void enter(const Frame& frame, Run& run);
  void leave(const Frame& frame);
  void capture();  // some value may use it after its call

  Activation* outer;
  std::vector<std::optional<Value>> slots;  // nothing: jinja2's `missing`
  bool captured = false;
};

// A macro, and where it was defined.
struct Macro {
  const Callable* callable;
  Activation* at;
};
const std::string& macro_name(const Macro& macro);

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Text that a template writes, up to so many characters.
struct Output {
  std::string text;
  std::size_t left = SIZE_MAX;
};

class Run {
 public:
  // `longest`: the most characters that it may write.
  Run(const std::unordered_map<std::string, Value>& variables, std::size_t longest, Budget& budget)
      : budget(budget), variables_(variables), longest_(longest) {
    result_.left = longest;
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;
  ~Run();

  void write(const Value& value);
  std::string take_result() { return std::move(result_.text); }

  // What is written while this lives goes into it.
  class Capture {
   public:
    explicit Capture(Run& run) : run_(run), outer_(std::exchange(run.output_, &inner_)) {}
    ~Capture() { run_.output_ = outer_; }
    Value text();  // so far; once

   private:
    Run& run_;
    Output inner_;
    Output* outer_;
  };

  // While this lives, so many nodes more are in one another. Raises TemplateError.
  class Deeper {
   public:
    Deeper(Run& run, int nodes);
    ~Deeper() { run_.depth_ -= nodes_; }

   private:
    Run& run_;
    int nodes_;
  };

  std::optional<Value> resolve(const std::string& name) const;  // a variable or a function of the environment
  Value call(const Value& callee, Arguments arguments);
  Value call_macro(const Macro& macro, Arguments arguments);
  Namespace* make_namespace();
  const Macro* make_macro(const Callable& callable, Activation& at);
  void keep(std::unique_ptr<Activation> activation);  // if it is captured
  void remember(const Value& loop);  // whose `changed` is called: what it was called with may hold the loop itself

  Budget& budget;

 private:
  const std::unordered_map<std::string, Value>& variables_;
  std::size_t longest_;
  Output result_;
  Output* output_ = &result_;
  int depth_ = 0;
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::unique_ptr<Macro>> macros_;
  std::vector<std::unique_ptr<Activation>> activations_;
  std::vector<Value> remembering_;  // loops
};

// value.name and value[key], as jinja2's sandbox finds them.
Value attribute_of(const Value& value, const std::string& name, Budget& budget);
Value item_of(const Value& value, const Value& key, Budget& budget);

}  // namespace l4::chat
