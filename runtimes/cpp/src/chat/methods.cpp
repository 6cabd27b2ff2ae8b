#include "chat/methods.hpp"

#include <algorithm>
#include <array>

#include "chat/functions.hpp"
#include "chat/items.hpp"
#include "chat/loop.hpp"
#include "chat/operations.hpp"
#include "chat/parameters.hpp"
#include "chat/printing.hpp"
#include "chat/text_methods.hpp"

namespace l4::chat {

namespace {

using Names = std::vector<std::string_view>;

// Public attributes of Python 3.11's values, those that a template may not use included.
const Names& attributes_of(Kind kind) {
  static const Names text = {"capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
                             "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
                             "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
                             "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
                             "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
                             "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
                             "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
                             "swapcase",     "title",       "translate", "upper",      "zfill"};
  static const Names list = {"append", "clear", "copy",   "count",   "extend", "index",
                             "insert", "pop",   "remove", "reverse", "sort"};
  static const Names tuple = {"count", "index"};
  static const Names dict = {"clear", "copy",    "fromkeys",   "get",    "items", "keys",
                             "pop",   "popitem", "setdefault", "update", "values"};
  static const Names range = {"count", "index", "start", "step", "stop"};
  static const Names whole = {"as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator",
                              "from_bytes",       "imag",      "numerator",  "real",      "to_bytes"};
  static const Names number = {"as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"};
  static const Names view = {"isdisjoint", "mapping"};
  static const Names stream = {"close",        "gi_code",      "gi_frame", "gi_running",
                               "gi_suspended", "gi_yieldfrom", "send",     "throw"};
  static const Names macro = {"arguments", "caller", "catch_kwargs", "catch_varargs", "explicit_caller", "name"};
  static const Names none;
  switch (kind) {
    case Kind::text: return text;
    case Kind::list: return list;
    case Kind::tuple: return tuple;
    case Kind::dict: return dict;
    case Kind::range: return range;
    case Kind::boolean: case Kind::integer: return whole;
    case Kind::number: return number;
    case Kind::view: return view;
    case Kind::stream: return stream;
    case Kind::macro: return macro;
    default: return none;
  }
}

bool is_among(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const Names& changing(Kind kind) {
  static const Names list = {"append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"};
  static const Names dict = {"clear", "pop", "popitem", "setdefault", "update"};
  static const Names none;
  return kind == Kind::list ? list : kind == Kind::dict ? dict : none;
}

// getattr(value, name); nothing where Python raises AttributeError.
std::optional<Value> python_attribute(const Value& value, const std::string& name) {
  if (value.is(Kind::loop)) {
    if (name == "cycle" || name == "changed") return Value(std::make_shared<const Method>(Method{value, name}));
    if (std::optional<Value> found = value.loop().attribute(name)) return found;
  } else if (value.is(Kind::name_space)) {
    if (const Value* found = value.name_space().values.find(name)) return *found;
  } else if (value.is(Kind::function) && value.function() == Function::dict && name == "fromkeys") {
    return Value(Function::dict_fromkeys);
  } else if (is_among(attributes_of(value.kind()), name)) {
    if (is_among(changing(value.kind()), name)) {
      throw TemplateError("access to the attribute " + repr(name) + " of " + type_name(value) + " is unsafe");
    }
    const bool is_value = value.is_numeric() || value.is(Kind::range) || value.is(Kind::view) ||
                          value.is(Kind::stream) || value.is(Kind::macro);
    if (is_value && name != "count" && name != "index") {
      throw TemplateError("the attribute '" + name + "' of a " + type_name(value) + ", which this library has not");
    }
    return Value(std::make_shared<const Method>(Method{value, name}));
  }
  if (name.size() > 4 && name.substr(0, 2) == "__" && name.substr(name.size() - 2) == "__") {
    throw TemplateError("access to the attribute " + repr(name) + " of " + type_name(value) + " is unsafe");
  }
  return std::nullopt;
}

std::string described(const Value& value) {
  if (value.is_none()) return "None";
  if (value.is(Kind::name_space)) return "l4export.runtimes.text.template_sandbox._PublicNamespace object";
  if (value.is(Kind::macro) || value.is(Kind::loop)) {
    return std::string("jinja2.runtime.") + type_name(value) + " object";
  }
  return std::string(type_name(value)) + " object";
}

Value missing(const Value& value, const std::string& name) {
  std::string_view shown = name;  // no more of it than a message has
  if (shown.size() > 400) {
    std::size_t end = 400;
    while ((static_cast<unsigned char>(shown[end]) & 0xC0) == 0x80) --end;
    shown = shown.substr(0, end);
  }
  return make_undefined(repr(described(value)) + " has no attribute " + repr(shown));
}

// Values that list, tuple and range have methods for.
Value call_of_sequence(Run& run, const Value& self, const std::string& name, const Arguments& arguments) {
  if (name == "copy") {
    Parameters("copy", arguments, {});
    return self;
  }
  if (name == "count") {
    const Value& item = Parameters("count", arguments, {"value"}).required(0);
    std::int64_t count = 0;
    for (const Value& other : items_of(self, run.budget)) count += equals(other, item, run.budget);
    return count;
  }
  const Parameters parameters("index", arguments, {"value", "start", "stop"});
  const std::vector<Value> items = items_of(self, run.budget);
  const auto size = static_cast<std::int64_t>(items.size());
  const auto bound = [&](std::size_t index, std::int64_t otherwise) {
    const std::int64_t at = parameters.at(index) ? whole_number(*parameters.at(index)) : otherwise;
    return std::clamp<std::int64_t>(at < 0 ? at + size : at, 0, size);
  };
  for (std::int64_t i = bound(1, 0); i < bound(2, size); ++i) {
    if (equals(items[static_cast<std::size_t>(i)], parameters.required(0), run.budget)) return i;
  }
  throw value_error(repr(parameters.required(0), run.budget) + " is not in list");
}

Value call_of_dict(Run& run, const Value& self, const std::string& name, const Arguments& arguments) {
  if (name == "get") {
    if (!arguments.named.empty()) throw type_error("dict.get() takes no keyword arguments");
    const Parameters parameters("get", arguments, {"key", "default"});
    const Value* found = self.dict().find(parameters.required(0), run.budget);
    return found == nullptr ? parameters.get(1, nullptr) : *found;
  }
  if (name == "fromkeys") return call_function(run, Function::dict_fromkeys, arguments);
  Parameters(name, arguments, {});
  if (name == "copy") return self;
  return View{self.dict_pointer(), name == "keys" ? Part::keys : name == "values" ? Part::values : Part::items};
}

Value call_of_loop(Run& run, const Value& self, const std::string& name, const Arguments& arguments) {
  Loop& loop = self.loop();
  if (!arguments.named.empty()) throw type_error("LoopContext." + name + "() got an unexpected keyword argument");
  const std::vector<Value>& values = arguments.positional;
  if (name == "cycle") {
    if (values.empty()) throw type_error("no items for cycling given");
    return values[static_cast<std::size_t>(loop.index0) % values.size()];
  }
  if (loop.changed && equals(make_tuple(*loop.changed), make_tuple(values), run.budget)) return false;
  if (!loop.changed) run.remember(self);
  loop.changed = values;
  return true;
}

}  // namespace

void check_method(std::string_view name) {
  static const Names unknown = {"as_integer_ratio", "bit_count",    "bit_length", "casefold", "conjugate", "encode",
                                "format",           "format_map",   "from_bytes", "fromhex",  "hex",       "is_integer",
                                "isdisjoint",       "isidentifier", "maketrans",  "to_bytes", "translate"};
  if (is_among(unknown, name)) throw Unsupported("the method '" + std::string(name) + "'");
}

Value attribute_of(const Value& value, const std::string& name, Budget& budget) {
  if (value.is_undefined()) fail_undefined(value);
  if (std::optional<Value> found = python_attribute(value, name)) return *found;
  if (!value.is(Kind::dict)) return missing(value, name);  // no other value has items by name
  budget.step();
  const Value* found = value.dict().find(name);
  return found == nullptr ? missing(value, name) : *found;
}

Value item_of(const Value& value, const Value& key, Budget& budget) {
  if (std::optional<Value> found = subscript(value, key, budget)) return *found;
  if (key.is_text()) {
    if (std::optional<Value> found = python_attribute(value, key.string())) return *found;
    return missing(value, key.string());
  }
  return make_undefined(described(value) + " has no element " +
                        (key.is(Kind::function) || key.is(Kind::method) ? type_name(key) : repr(key, budget)));
}

Value call_method(Run& run, const Method& method, const Arguments& arguments) {
  const Value& self = method.self;
  switch (self.kind()) {
    case Kind::text: return call_of_text(run, self, method.name, arguments);
    case Kind::dict: return call_of_dict(run, self, method.name, arguments);
    case Kind::loop: return call_of_loop(run, self, method.name, arguments);
    default: return call_of_sequence(run, self, method.name, arguments);
  }
}

}  // namespace l4::chat
