// Values of templates: what Python's None, bool, int, float, str, list, tuple, dict, range and so on are to them.
//
// They are immutable, as jinja2's sandbox keeps them, but for namespaces, streams and loops. Namespaces and macros
// belong to the run that made them, and no value outlives its run.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "base/utf8.hpp"
#include "chat/budget.hpp"

namespace l4::chat {

class Value;
class Dict;
struct Loop;
struct Macro;
struct Method;
struct Namespace;
struct Stream;

struct Undefined {
  std::shared_ptr<const std::string> message;  // what jinja2 says when it is used
};

// Valid UTF-8 and its length in characters, which is what Python counts.
struct Text {
  explicit Text(std::string text);
  bool ascii() const { return points == bytes.size(); }

  std::string bytes;
  std::size_t points;
};

struct Sequence {
  std::vector<Value> items;
  int depth = 1;  // of nesting
};
struct Tuple {
  std::shared_ptr<const Sequence> items;
};

struct Range {
  std::int64_t start, stop, step;
  std::int64_t size() const;
  std::int64_t at(std::int64_t index) const { return start + index * step; }
};

enum class Part { keys, values, items };
struct View {  // what keys(), values() and items() of a dict give
  std::shared_ptr<const Dict> dict;
  Part part;
};

enum class Function { range, dict, dict_fromkeys, name_space, raise_exception, strftime_now };

enum class Kind {
  undefined, none, boolean, integer, number, text, list, tuple, dict,
  range, view, stream, name_space, macro, function, method, loop
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined value) : data_(std::move(value)) {}
  Value(std::nullptr_t) : data_(nullptr) {}
  Value(bool value) : data_(value) {}
  Value(std::int64_t value) : data_(value) {}
  Value(int value) : data_(static_cast<std::int64_t>(value)) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::make_shared<const Text>(std::move(value))) {}
  Value(std::string_view value) : Value(std::string(value)) {}
  Value(const char* value) : Value(std::string(value)) {}
  Value(std::shared_ptr<const Sequence> value) : data_(std::move(value)) {}
  Value(Tuple value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Dict> value) : data_(std::move(value)) {}
  Value(Range value) : data_(value) {}
  Value(View value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Stream> value) : data_(std::move(value)) {}
  Value(Namespace* value) : data_(value) {}
  Value(const Macro* value) : data_(value) {}
  Value(Function value) : data_(value) {}
  Value(std::shared_ptr<const Method> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Loop> value) : data_(std::move(value)) {}

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is(Kind kind) const { return this->kind() == kind; }
  bool is_undefined() const { return is(Kind::undefined); }
  bool is_none() const { return is(Kind::none); }
  bool is_text() const { return is(Kind::text); }
  bool is_whole() const { return is(Kind::integer) || is(Kind::boolean); }  // an int to Python, as bool is
  bool is_numeric() const { return is_whole() || is(Kind::number); }

  // Of that kind already.
  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  bool boolean() const { return std::get<bool>(data_); }
  std::int64_t whole() const { return is(Kind::boolean) ? boolean() : std::get<std::int64_t>(data_); }
  double number() const { return is(Kind::number) ? std::get<double>(data_) : static_cast<double>(whole()); }
  const Text& text() const { return *std::get<std::shared_ptr<const Text>>(data_); }
  const std::string& string() const { return text().bytes; }
  const Sequence& sequence() const {  // of a list or a tuple
    return is(Kind::tuple) ? *std::get<Tuple>(data_).items : *std::get<std::shared_ptr<const Sequence>>(data_);
  }
  const Dict& dict() const { return *dict_pointer(); }
  const std::shared_ptr<const Dict>& dict_pointer() const { return std::get<std::shared_ptr<const Dict>>(data_); }
  const Range& range() const { return std::get<Range>(data_); }
  const View& view() const { return std::get<View>(data_); }
  Stream& stream() const { return *std::get<std::shared_ptr<Stream>>(data_); }
  Namespace& name_space() const { return *std::get<Namespace*>(data_); }
  const Macro& macro() const { return *std::get<const Macro*>(data_); }
  Function function() const { return std::get<Function>(data_); }
  const Method& method() const { return *std::get<std::shared_ptr<const Method>>(data_); }
  Loop& loop() const { return *std::get<std::shared_ptr<Loop>>(data_); }

  int depth() const;  // of nesting; 0 where nothing is within

 private:
  // in the order of Kind
  std::variant<Undefined, std::nullptr_t, bool, std::int64_t, double, std::shared_ptr<const Text>,
               std::shared_ptr<const Sequence>, Tuple, std::shared_ptr<const Dict>, Range, View,
               std::shared_ptr<Stream>, Namespace*, const Macro*, Function, std::shared_ptr<const Method>,
               std::shared_ptr<Loop>>
      data_;
};

// Keys in the order in which they came. One that is not hashable raises TemplateError.
class Dict {
 public:
  const Value* find(const Value& key, Budget& budget) const;
  const Value* find(std::string_view key) const;
  void set(const Value& key, Value value, Budget& budget);  // adds or replaces
  void set(std::string_view key, Value value);
  const std::vector<std::pair<Value, Value>>& items() const { return items_; }
  std::size_t size() const { return items_.size(); }
  int depth() const { return depth_; }

 private:
  template <typename Same>
  std::size_t place_of(std::size_t hash, Same&& same) const;  // size() where it is not
  void put(std::size_t place, std::size_t hash, const Value& key, Value value);

  std::vector<std::pair<Value, Value>> items_;
  std::unordered_multimap<std::size_t, std::size_t> index_;  // hash of a key to its place
  int depth_ = 1;
};

struct Stream {  // a generator: its items can be had once
  std::vector<Value> items;
  std::size_t at = 0;
  int depth = 1;
};

struct Namespace {
  Dict values;
};

struct Method {  // of a value, not called yet
  Value self;
  std::string name;
};

// Containers whose nesting is checked: raises TemplateError where there is too much.
Value make_list(std::vector<Value> items);
Value make_tuple(std::vector<Value> items);
Value make_dict(Dict dict);
Value make_stream(std::vector<Value> items);
Value make_undefined(std::string message);

}  // namespace l4::chat
