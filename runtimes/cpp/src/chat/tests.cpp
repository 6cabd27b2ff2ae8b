#include "chat/tests.hpp"

#include <unordered_map>

#include "chat/items.hpp"
#include "chat/operations.hpp"
#include "chat/parameters.hpp"
#include "chat/printing.hpp"
#include "chat/expression_nodes.hpp"
#include "chat/text_methods.hpp"

namespace l4::chat {

namespace {

using Predicate = bool (*)(Run& run, const Value& value);

bool is_callable(Run&, const Value& value) {
  return value.is_undefined() || value.is(Kind::macro) || value.is(Kind::function) || value.is(Kind::method) ||
         value.is(Kind::loop);
}

bool is_sequence(Run&, const Value& value) {
  return value.is_undefined() || value.is_text() || value.is(Kind::list) || value.is(Kind::tuple) ||
         value.is(Kind::dict) || value.is(Kind::range);
}

std::int64_t remainder(Run& run, const Value& value, const Value& divisor) {
  const Value rest = compute(Operator::modulo, value, divisor, run.budget);
  return equals(rest, 0, run.budget) ? 0 : equals(rest, 1, run.budget) ? 1 : 2;
}

const std::unordered_map<std::string_view, Predicate>& predicates() {
  static const std::unordered_map<std::string_view, Predicate> all = {
      {"boolean", [](Run&, const Value& value) { return value.is(Kind::boolean); }},
      {"callable", is_callable},
      {"defined", [](Run&, const Value& value) { return !value.is_undefined(); }},
      {"even", [](Run& run, const Value& value) { return remainder(run, value, 2) == 0; }},
      {"false", [](Run&, const Value& value) { return value.is(Kind::boolean) && !value.boolean(); }},
      {"float", [](Run&, const Value& value) { return value.is(Kind::number); }},
      {"integer", [](Run&, const Value& value) { return value.is(Kind::integer); }},
      {"iterable", [](Run&, const Value& value) { return is_iterable(value); }},
      {"lower", [](Run& run, const Value& value) { return is_lower(text_of(value, run.budget).string()); }},
      {"mapping", [](Run&, const Value& value) { return value.is(Kind::dict); }},
      {"none", [](Run&, const Value& value) { return value.is_none(); }},
      {"number", [](Run&, const Value& value) { return value.is_numeric(); }},
      {"odd", [](Run& run, const Value& value) { return remainder(run, value, 2) == 1; }},
      {"sequence", is_sequence},
      {"string", [](Run&, const Value& value) { return value.is_text(); }},
      {"true", [](Run&, const Value& value) { return value.is(Kind::boolean) && value.boolean(); }},
      {"undefined", [](Run&, const Value& value) { return value.is_undefined(); }},
      {"upper", [](Run& run, const Value& value) { return is_upper(text_of(value, run.budget).string()); }},
  };
  return all;
}

const std::unordered_map<std::string_view, Comparison>& comparisons() {
  static const std::unordered_map<std::string_view, Comparison> all = {
      {"!=", Comparison::unequal},  {"<", Comparison::less},
      {"<=", Comparison::at_most},  {"==", Comparison::equal},
      {">", Comparison::greater},   {">=", Comparison::at_least},
      {"eq", Comparison::equal},    {"equalto", Comparison::equal},
      {"ge", Comparison::at_least}, {"greaterthan", Comparison::greater},
      {"gt", Comparison::greater},  {"in", Comparison::in},
      {"le", Comparison::at_most},  {"lessthan", Comparison::less},
      {"lt", Comparison::less},     {"ne", Comparison::unequal},
  };
  return all;
}

// Whether two values are one object, where that follows from what they are.
bool is_same(const Value& value, const Value& other) {
  const auto single = [](const Value& v) { return v.is_none() || v.is(Kind::boolean); };
  if (single(value) || single(other)) {
    return value.kind() == other.kind() && (value.is_none() || value.boolean() == other.boolean());
  }
  if (value.kind() != other.kind()) return false;
  throw TemplateError(std::string("the test 'sameas' on a ") + type_name(value) + ", which this library has not");
}

}  // namespace

void check_test(const std::string& name) {
  if (predicates().count(name) != 0 || comparisons().count(name) != 0 || name == "divisibleby" || name == "sameas") {
    return;
  }
  if (name == "escaped" || name == "filter" || name == "test") throw Unsupported("the test '" + name + "'");
  throw TemplateError("No test named " + repr(name) + ".");
}

bool apply_test(Run& run, const std::string& name, const Value& value, const Arguments& arguments) {
  if (const auto predicate = predicates().find(name); predicate != predicates().end()) {
    Parameters("test " + name, arguments, {});
    return predicate->second(run, value);
  }
  if (const auto comparison = comparisons().find(name); comparison != comparisons().end()) {
    return compare(comparison->second, value, Parameters("test " + name, arguments, {"b"}).required(0), run.budget);
  }
  if (name == "divisibleby") {
    return remainder(run, value, Parameters("test_divisibleby", arguments, {"num"}).required(0)) == 0;
  }
  if (name == "sameas") return is_same(value, Parameters("test_sameas", arguments, {"other"}).required(0));
  check_test(name);  // which raises, for a name that was not known before
  return false;
}

}  // namespace l4::chat
