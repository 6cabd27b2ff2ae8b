// The variable `loop`, and the items of a loop, which are fetched one after the other as jinja2 does.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chat/items.hpp"
#include "chat/value.hpp"

namespace l4::chat {

struct ForNode;
struct Activation;

struct Loop {
  Loop(const Value& iterable, Budget& budget) : iterable(iterable), source(iterable, budget) {}

  // `accepts`, the condition of the loop, is asked as late as jinja2 asks it: it may depend on what the body does.
  bool advance(Value& item);
  bool peek();                // whether another item comes
  std::int64_t length();      // of all items; fetches them unless the iterable knows
  std::optional<Value> attribute(const std::string& name);  // nothing: there is none of that name

  Value iterable;
  Items source;
  std::function<bool(const Value&)> accepts;  // empty: every item
  std::vector<Value> fetched;                 // ahead of the body, the next one last
  std::int64_t index0 = -1;
  int depth0 = 0;
  std::optional<std::int64_t> known_length;
  std::optional<Value> before, current;
  std::optional<std::vector<Value>> changed;  // what loop.changed() was last called with
  const ForNode* recursion = nullptr;         // of a loop that can be called
  Activation* outer = nullptr;

 private:
  bool fetch(Value& item);
};

}  // namespace l4::chat
