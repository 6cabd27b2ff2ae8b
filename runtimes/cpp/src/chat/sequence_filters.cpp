// Filters that take a sequence as a whole.
#include <algorithm>

#include "chat/filters.hpp"
#include "chat/items.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"

namespace l4::chat {

namespace {

Value do_length(Run&, const Value& value, const Arguments& arguments) {
  Parameters("len", arguments, {});
  const std::optional<std::int64_t> found = length(value);
  if (!found) throw type_error(std::string("object of type '") + type_name(value) + "' has no len()");
  return *found;
}

Value do_first(Run& run, const Value& value, const Arguments& arguments) {
  Parameters("do_first", arguments, {});
  Value first;
  return Items(value, run.budget).next(first) ? first : make_undefined("No first item, sequence was empty.");
}

// As Python's `reversed` sees it: what is undefined has a length, 0.
bool is_reversible(const Value& value) {
  return value.is_undefined() || value.is_text() || value.is(Kind::list) || value.is(Kind::tuple) ||
         value.is(Kind::dict) || value.is(Kind::range) || value.is(Kind::view);
}

Value do_last(Run& run, const Value& value, const Arguments& arguments) {
  Parameters("do_last", arguments, {});
  if (!is_reversible(value)) throw type_error(std::string("'") + type_name(value) + "' object is not reversible");
  const std::vector<Value> items = items_of(value, run.budget);
  return items.empty() ? make_undefined("No last item, sequence was empty.") : items.back();
}

Value do_join(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_join", arguments, {"d", "attribute"});
  const Value between = text_of(parameters.get(0, ""), run.budget);
  const Getter get(parameters.at(1), false, run.budget);
  std::string out;
  bool first = true;
  Items items(value, run.budget);
  for (Value item; items.next(item); first = false) {
    if (!first) append_text(out, between, run.budget);
    append_text(out, get(std::move(item)), run.budget);
  }
  return out;
}

Value do_list(Run& run, const Value& value, const Arguments& arguments) {
  Parameters("do_list", arguments, {});
  return make_list(items_of(value, run.budget));
}

Value do_reverse(Run& run, const Value& value, const Arguments& arguments) {
  Parameters("do_reverse", arguments, {});
  if (value.is_text()) return slice(value, nullptr, nullptr, -1, run.budget);
  if (!is_iterable(value)) throw TemplateError("argument must be iterable");
  std::vector<Value> items = items_of(value, run.budget);
  std::reverse(items.begin(), items.end());
  return is_reversible(value) ? make_stream(std::move(items)) : make_list(std::move(items));
}

Value do_items(Run& run, const Value& value, const Arguments& arguments) {
  Parameters("do_items", arguments, {});
  if (value.is_undefined()) return make_stream({});
  if (!value.is(Kind::dict)) throw type_error("Can only get item pairs from a mapping.");
  return make_stream(items_of(View{value.dict_pointer(), Part::items}, run.budget));
}

Value do_batch(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_batch", arguments, {"linecount", "fill_with"});
  const std::int64_t size = whole_number(parameters.required(0));
  const Value fill = parameters.get(1, nullptr);
  std::vector<Value> batches, batch;
  const auto flush = [&] {
    run.budget.make(2 * sizeof(Value));
    batches.push_back(make_list(std::exchange(batch, {})));
  };
  Items items(value, run.budget);
  for (Value item; items.next(item);) {
    if (static_cast<std::int64_t>(batch.size()) == size) flush();
    run.budget.make(sizeof(Value));
    batch.push_back(std::move(item));
  }
  if (batch.empty()) return make_stream(std::move(batches));
  while (!fill.is_none() && static_cast<std::int64_t>(batch.size()) < size) {
    run.budget.make(sizeof(Value));
    batch.push_back(fill);
  }
  flush();
  return make_stream(std::move(batches));
}

Value do_slice(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_slice", arguments, {"slices", "fill_with"});
  const std::int64_t slices = whole_number(parameters.required(0));
  const Value fill = parameters.get(1, nullptr);
  const std::vector<Value> items = items_of(value, run.budget);
  if (slices == 0) throw TemplateError("ZeroDivisionError: integer division or modulo by zero");
  const auto size = static_cast<std::int64_t>(items.size());
  std::vector<Value> columns;
  std::int64_t begin = 0;
  for (std::int64_t index = 0; index < slices; ++index) {
    const bool extra = index < size % slices;
    const std::int64_t end = begin + size / slices + extra;
    run.budget.make((static_cast<std::size_t>(end - begin) + 4) * sizeof(Value));
    std::vector<Value> column(items.begin() + begin, items.begin() + end);
    if (!fill.is_none() && !extra) column.push_back(fill);
    columns.push_back(make_list(std::move(column)));
    begin = end;
  }
  return make_stream(std::move(columns));
}

Value do_sum(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_sum", arguments, {"attribute", "start"});
  const Getter get(parameters.at(0), false, run.budget);
  Value sum = parameters.get(1, 0);
  if (sum.is_text()) throw type_error("sum() can't sum strings [use ''.join(seq) instead]");
  Items items(value, run.budget);
  for (Value item; items.next(item);) sum = compute(Operator::add, sum, get(std::move(item)), run.budget);
  return sum;
}

}  // namespace

const Filters& sequence_filters() {
  static const Filters filters = {
      {"batch", do_batch},     {"count", do_length}, {"first", do_first},   {"items", do_items},
      {"join", do_join},       {"last", do_last},    {"length", do_length}, {"list", do_list},
      {"reverse", do_reverse}, {"slice", do_slice},  {"sum", do_sum},
  };
  return filters;
}

}  // namespace l4::chat
