// Iterating as Python's iter() and next() do.
#pragma once

#include <vector>

#include "chat/budget.hpp"
#include "chat/value.hpp"

namespace l4::chat {

bool is_iterable(const Value& value);

class Items {
 public:
  // Raises TemplateError where the value is not iterable.
  Items(Value value, Budget& budget);
  bool next(Value& item);  // false: there are no more

 private:
  Value value_;
  Budget* budget_;
  std::size_t at_ = 0;
};

// All items of a value.
std::vector<Value> items_of(const Value& value, Budget& budget);

}  // namespace l4::chat
