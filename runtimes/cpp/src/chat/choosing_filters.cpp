// Filters that choose, map and order the items of a sequence.
#include <algorithm>

#include "chat/filters.hpp"
#include "chat/items.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"
#include "chat/tests.hpp"

namespace l4::chat {

namespace {

// The arguments behind the first `count`.
Arguments behind(const Arguments& arguments, std::size_t count) {
  return {{arguments.positional.begin() + static_cast<std::ptrdiff_t>(count), arguments.positional.end()},
          arguments.named};
}

Value do_map(Run& run, const Value& value, const Arguments& arguments) {
  std::vector<Value> mapped;
  if (!truth(value)) return make_stream({});
  const bool by_attribute = arguments.positional.empty() && !arguments.named.empty();
  if (!by_attribute && arguments.positional.empty()) throw TemplateError("map requires a filter argument");
  const Parameters parameters("map", by_attribute ? arguments : Arguments{}, {"attribute", "default"});
  if (by_attribute) parameters.required(0);
  const Getter get(parameters.at(0), false, run.budget);
  const Value otherwise = parameters.get(1, nullptr);
  Items items(value, run.budget);
  for (Value item; items.next(item);) {
    run.budget.make(sizeof(Value));
    if (by_attribute) {
      Value found = get(std::move(item));
      mapped.push_back(found.is_undefined() && !otherwise.is_none() ? otherwise : std::move(found));
    } else {
      mapped.push_back(
          apply_filter(run, string_of(arguments.positional[0], "the filter of map"), item, behind(arguments, 1)));
    }
  }
  return make_stream(std::move(mapped));
}

Value chosen(Run& run, const Value& value, const Arguments& arguments, bool by_attribute, bool wanted) {
  std::vector<Value> left;
  if (!truth(value)) return make_stream({});
  const std::size_t at = by_attribute ? 1 : 0;
  if (arguments.positional.size() < at) throw TemplateError("Missing parameter for attribute name");
  const Getter get(by_attribute ? std::optional<Value>(arguments.positional[0]) : std::nullopt, false, run.budget);
  const bool by_test = arguments.positional.size() > at;
  const Arguments rest = by_test ? behind(arguments, at + 1) : Arguments{};
  Items items(value, run.budget);
  for (Value item; items.next(item);) {
    const Value tried = get(item);
    const bool holds =
        by_test ? truth(apply_test(run, string_of(arguments.positional[at], "the test"), tried, rest)) : truth(tried);
    if (holds != wanted) continue;
    run.budget.make(sizeof(Value));
    left.push_back(std::move(item));
  }
  return make_stream(std::move(left));
}

// Items in the order of their keys, equal ones as they came, also where it is reversed.
std::vector<Value> ordered(const std::vector<Value>& items, const std::vector<Value>& keys, bool reversed,
                           Budget& budget) {
  std::vector<std::size_t> order(items.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return reversed ? less(keys[b], keys[a], "<", budget) : less(keys[a], keys[b], "<", budget);
  });
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (const std::size_t index : order) sorted.push_back(items[index]);
  return sorted;
}

// What sort compares of an item: a list of the attributes, which have commas between them.
class SortKey {
 public:
  SortKey(const std::optional<Value>& attribute, bool lowers, Budget& budget) : budget_(budget) {
    if (!attribute || !attribute->is_text()) {
      getters_.emplace_back(attribute, lowers, budget);
      return;
    }
    const std::string& names = attribute->string();
    for (std::size_t begin = 0; begin <= names.size();) {
      const std::size_t end = std::min(names.find(',', begin), names.size());
      getters_.emplace_back(Value(names.substr(begin, end - begin)), lowers, budget);
      begin = end + 1;
    }
  }
  Value operator()(const Value& item) const {
    budget_.make(getters_.size() * sizeof(Value));
    std::vector<Value> key;
    for (const Getter& get : getters_) key.push_back(get(item));
    return make_list(std::move(key));
  }

 private:
  std::vector<Getter> getters_;
  Budget& budget_;
};

Value do_sort(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const SortKey key_of(parameters.at(2), !truth(parameters.get(1, false)), run.budget);
  const std::vector<Value> items = items_of(value, run.budget);
  std::vector<Value> keys;
  for (const Value& item : items) keys.push_back(key_of(item));
  return make_list(ordered(items, keys, truth(parameters.get(0, false)), run.budget));
}

Value do_dictsort(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const Value by = parameters.get(1, "key");
  const bool by_key = by.is_text() && by.string() == "key", by_value = by.is_text() && by.string() == "value";
  if (!by_key && !by_value) throw TemplateError("You can only sort by either \"key\" or \"value\"");
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is(Kind::dict)) {
    throw TemplateError(std::string("AttributeError: '") + type_name(value) + "' object has no attribute 'items'");
  }
  const bool sensitive = truth(parameters.get(0, false));
  std::vector<Value> keys;
  for (const auto& [key, item] : value.dict().items()) {
    const Value& compared = by_key ? key : item;
    keys.push_back(sensitive ? compared : without_case(compared, run.budget));
  }
  const std::vector<Value> items = items_of(View{value.dict_pointer(), Part::items}, run.budget);
  return make_list(ordered(items, keys, truth(parameters.get(2, false)), run.budget));
}

Value do_unique(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_unique", arguments, {"case_sensitive", "attribute"});
  const Getter get(parameters.at(1), !truth(parameters.get(0, false)), run.budget);
  Dict seen;
  std::vector<Value> left;
  Items items(value, run.budget);
  for (Value item; items.next(item);) {
    const Value key = get(item);
    if (seen.find(key, run.budget) != nullptr) continue;
    run.budget.make(5 * sizeof(Value));
    seen.set(key, nullptr, run.budget);
    left.push_back(std::move(item));
  }
  return make_stream(std::move(left));
}

Value extreme(Run& run, const Value& value, const Arguments& arguments, bool largest) {
  const Parameters parameters(largest ? "do_max" : "do_min", arguments, {"case_sensitive", "attribute"});
  const Getter get(parameters.at(1), !truth(parameters.get(0, false)), run.budget);
  Items items(value, run.budget);
  Value best, item;
  if (!items.next(best)) return make_undefined("No aggregated item, sequence was empty.");
  Value best_key = get(best);
  while (items.next(item)) {
    Value key = get(item);
    if (!(largest ? less(best_key, key, ">", run.budget) : less(key, best_key, "<", run.budget))) continue;
    best = std::move(item), best_key = std::move(key);
  }
  return best;
}

}  // namespace

const Filters& choosing_filters() {
  static const Filters filters = {
      {"dictsort", do_dictsort},
      {"map", do_map},
      {"max",
       [](Run& run, const Value& value, const Arguments& arguments) { return extreme(run, value, arguments, true); }},
      {"min",
       [](Run& run, const Value& value, const Arguments& arguments) { return extreme(run, value, arguments, false); }},
      {"reject", [](Run& run, const Value& value,
                    const Arguments& arguments) { return chosen(run, value, arguments, false, false); }},
      {"rejectattr", [](Run& run, const Value& value,
                        const Arguments& arguments) { return chosen(run, value, arguments, true, false); }},
      {"select", [](Run& run, const Value& value,
                    const Arguments& arguments) { return chosen(run, value, arguments, false, true); }},
      {"selectattr", [](Run& run, const Value& value,
                        const Arguments& arguments) { return chosen(run, value, arguments, true, true); }},
      {"sort", do_sort},
      {"unique", do_unique},
  };
  return filters;
}

}  // namespace l4::chat
