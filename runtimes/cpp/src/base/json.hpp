// Strict JSON [RFC 8259]: UTF-8, no key twice in an object, no NaN or Infinity, bounded in depth and in number of
// values.
//
// `Reader` reads a document piece by piece and keeps nothing, for files of many megabytes; `Value` holds a whole one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace l4::json {

struct Limits {
  std::size_t values = 1'000'000;  // about: commas, colons and opening brackets, as the Python runtime counts them
  int depth = 64;
};

enum class Kind { null, boolean, integer, number, string, array, object };

// Reads one value after the other from a document that it does not own. Raises Error (L4_BAD_INPUT, beginning with
// `where`) where the text is not strict JSON. Keys of objects are not compared with each other here.
//
//   reader.object([&](std::string_view key) { if (key == "vocab") ... else reader.skip(); });
class Reader {
 public:
  Reader(std::string_view text, std::string where, Limits limits = {});

  Kind peek();                     // of the value that comes
  void null();                     // these read a value of that kind, or raise
  bool boolean();
  std::int64_t integer();          // no fraction, no exponent, within 64 bits
  double number();                 // integers too
  std::string string();            // with its escapes resolved; valid UTF-8 (a lone surrogate is refused)
  std::string_view string_view(std::string& scratch);  // the same without a copy where there is no escape
  std::string_view raw_number();   // as it is written
  std::string_view skip();         // a value of any kind, checked all the same; its text
  void end();                      // nothing but white space follows

  // `member(key)` and `item()` must read one value each.
  template <typename Member>
  void object(Member&& member) {
    open('{');
    std::string scratch;  // of this object: nested ones have their own
    if (!closes('}')) {
      do {
        const std::string_view key = string_view(scratch);
        colon();
        member(key);
      } while (comma_or('}'));
    }
    --depth_;
  }
  template <typename Item>
  void array(Item&& item) {
    open('[');
    if (!closes(']')) {
      do {
        item();
      } while (comma_or(']'));
    }
    --depth_;
  }

  [[noreturn]] void fail(const std::string& problem) const;  // with `where` and the byte at which reading stands
  const std::string& where() const { return where_; }

 private:
  void space();
  void open(char bracket);
  bool closes(char bracket);
  bool comma_or(char bracket);
  void colon();
  void literal(std::string_view word);
  void count();
  std::uint32_t hex4(std::size_t at) const;

  std::string_view text_;
  std::string where_;
  Limits limits_;
  std::size_t at_ = 0;
  std::size_t values_ = 0;
  int depth_ = 0;
};

class Value;
using Array = std::vector<Value>;

// Members in the order of the document; looking one up takes time in their number, or a hash where there are many.
class Object {
 public:
  const Value* find(std::string_view key) const;
  const std::vector<std::pair<std::string, Value>>& members() const { return members_; }
  bool add(std::string key, Value value);  // false where the key is there already, which stays as it is
  void set(std::string key, Value value);  // adds or replaces
  std::size_t size() const;

 private:
  std::vector<std::pair<std::string, Value>> members_;
  std::vector<std::uint32_t> buckets_;  // open addressing, index + 1; empty for few members
};

// A JSON value. An integer beyond 64 bits is a number.
class Value {
 public:
  Value() = default;
  Value(std::nullptr_t) {}
  Value(bool value) : data_(value) {}
  Value(std::int64_t value) : data_(value) {}
  Value(int value) : data_(static_cast<std::int64_t>(value)) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::move(value)) {}
  Value(const char* value) : data_(std::string(value)) {}
  Value(Array value) : data_(std::make_shared<Array>(std::move(value))) {}
  Value(Object value) : data_(std::make_shared<Object>(std::move(value))) {}

  Kind kind() const { return static_cast<Kind>(data_.index()); }
  bool is_null() const { return kind() == Kind::null; }
  bool is_string() const { return kind() == Kind::string; }
  bool is_object() const { return kind() == Kind::object; }
  bool is_array() const { return kind() == Kind::array; }
  bool is_integer() const { return kind() == Kind::integer; }
  bool is_boolean() const { return kind() == Kind::boolean; }
  bool is_number() const { return kind() == Kind::integer || kind() == Kind::number; }

  // Of that kind already.
  bool boolean() const { return std::get<bool>(data_); }
  std::int64_t integer() const { return std::get<std::int64_t>(data_); }
  double number() const { return is_integer() ? static_cast<double>(integer()) : std::get<double>(data_); }
  const std::string& string() const { return std::get<std::string>(data_); }
  const Array& array() const { return *std::get<std::shared_ptr<Array>>(data_); }
  const Object& object() const { return *std::get<std::shared_ptr<Object>>(data_); }

  // A member of an object; nullptr where this is no object or has none.
  const Value* find(std::string_view key) const { return is_object() ? object().find(key) : nullptr; }

 private:
  // in the order of Kind; copies share arrays and objects, which nobody changes once they are in a value
  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, std::shared_ptr<Array>, std::shared_ptr<Object>>
      data_ = nullptr;
};

// A whole document. Raises Error (L4_BAD_INPUT).
Value parse(std::string_view text, const std::string& where, Limits limits = {});

// The value that comes next from a reader.
Value read_value(Reader& reader);

// As JSON text. `ascii`: escapes all other characters, as Python's json.dumps does unless told otherwise; `spaced`:
// with its ", " and ": ".
std::string dump(const Value& value, bool ascii = false, bool spaced = true);

// A string as JSON text, with its quotes.
void dump_string(std::string& out, std::string_view text, bool ascii = false);

}  // namespace l4::json
