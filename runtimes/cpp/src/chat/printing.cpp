#include "chat/printing.hpp"

#include <algorithm>

#include "base/json.hpp"
#include "base/shown.hpp"
#include "chat/characters.hpp"
#include "chat/interpreter.hpp"
#include "chat/items.hpp"
#include "chat/loop.hpp"
#include "chat/operations.hpp"

namespace l4::chat {

namespace {

bool is_printed(char32_t point) { return has(point, kPrintable); }

// Writes values as repr() does; what is written is paid for as it grows.
class Printer {
 public:
  Printer(std::string& out, Budget& budget) : out_(out), budget_(budget) {}

  void repr(const Value& value) {
    const std::size_t begin = out_.size();
    switch (value.kind()) {
      case Kind::undefined: out_ += "Undefined"; break;
      case Kind::none: out_ += "None"; break;
      case Kind::boolean: out_ += value.boolean() ? "True" : "False"; break;
      case Kind::integer: out_ += std::to_string(value.whole()); break;
      case Kind::number: out_ += python_repr(value.number()); break;
      case Kind::text:
        budget_.make(value.string().size());
        append_repr(out_, value.string(), is_printed);
        break;
      case Kind::list: return list(value.sequence().items, '[', ']');
      case Kind::tuple: return list(value.sequence().items, '(', ')');
      case Kind::dict: return dict(value.dict());
      case Kind::range: range(value.range()); break;
      case Kind::view:
        out_ += std::string(type_name(value)) + "(";
        list(items_of(value, budget_), '[', ']');
        out_ += ")";
        return;
      case Kind::name_space:
        if (++name_spaces_ > kMostDepth) throw TemplateError("values are nested too deeply");
        out_ += "<Namespace ";
        dict(value.name_space().values);
        out_ += ">";
        --name_spaces_;
        return;
      case Kind::macro: out_ += "<Macro " + chat::repr(macro_name(value.macro())) + ">"; break;
      case Kind::loop:
        out_ += "<LoopContext " + std::to_string(value.loop().index0 + 1) + "/" +
                std::to_string(value.loop().length()) + ">";
        break;
      case Kind::stream: case Kind::function: case Kind::method:
        throw TemplateError(std::string("it writes a ") + type_name(value) +
                            (value.is(Kind::method) ? " (" + value.method().name + ")" : "") +
                            ", which Python writes with its address in memory");
    }
    budget_.make(out_.size() - begin + 8);
  }

 private:
  void list(const std::vector<Value>& items, char open, char close) {
    budget_.make(8 + 2 * items.size());
    out_.push_back(open);
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (i != 0) out_ += ", ";
      repr(items[i]);
    }
    if (open == '(' && items.size() == 1) out_.push_back(',');
    out_.push_back(close);
  }

  void dict(const Dict& dict) {
    budget_.make(8 + 4 * dict.size());
    out_.push_back('{');
    bool first = true;
    for (const auto& [key, value] : dict.items()) {
      if (!first) out_ += ", ";
      first = false;
      repr(key);
      out_ += ": ";
      repr(value);
    }
    out_.push_back('}');
  }

  void range(const Range& range) {
    out_ += "range(" + std::to_string(range.start) + ", " + std::to_string(range.stop);
    if (range.step != 1) out_ += ", " + std::to_string(range.step);
    out_ += ")";
  }

  std::string& out_;
  Budget& budget_;
  int name_spaces_ = 0;
};

class JsonWriter {
 public:
  JsonWriter(std::string& out, const JsonStyle& style, Budget& budget) : out_(out), style_(style), budget_(budget) {}

  void write(const Value& value, std::size_t level) {
    budget_.make(16);
    switch (value.kind()) {
      case Kind::none: out_ += "null"; return;
      case Kind::boolean: out_ += value.boolean() ? "true" : "false"; return;
      case Kind::integer: out_ += std::to_string(value.whole()); return;
      case Kind::number: out_ += json::dump(value.number()); return;
      case Kind::text: return text(value.string());
      case Kind::list: case Kind::tuple: return list(value.sequence().items, level);
      case Kind::dict: return dict(value.dict(), level);
      default: throw type_error(std::string("Object of type ") + type_name(value) + " is not JSON serializable");
    }
  }

 private:
  void text(const std::string& text) {
    budget_.make(2 * text.size());
    json::dump_string(out_, text, style_.ascii);
  }

  void line(std::size_t level) {
    if (!style_.indent) return;
    const std::size_t each = style_.indent->size();
    if (each != 0 && level > kMostBytes / each) throw LimitExceeded("it needs too much memory");
    budget_.make(1 + level * each);
    out_.push_back('\n');
    for (std::size_t i = 0; i < level; ++i) out_ += *style_.indent;
  }

  void separate(bool& first, std::size_t level) {
    if (!first) {
      budget_.make(style_.item_separator.size());
      out_ += style_.item_separator;
    }
    first = false;
    line(level);
  }

  void list(const std::vector<Value>& items, std::size_t level) {
    if (items.empty()) { out_ += "[]"; return; }
    out_.push_back('[');
    bool first = true;
    for (const Value& item : items) {
      separate(first, level + 1);
      write(item, level + 1);
    }
    line(level);
    out_.push_back(']');
  }

  void dict(const Dict& dict, std::size_t level) {
    if (dict.size() == 0) { out_ += "{}"; return; }
    std::vector<const std::pair<Value, Value>*> members;
    for (const auto& member : dict.items()) members.push_back(&member);
    if (style_.sorted) {
      std::stable_sort(members.begin(), members.end(),
                       [&](const auto* a, const auto* b) { return less(a->first, b->first, "<", budget_); });
    }
    out_.push_back('{');
    bool first = true;
    for (const auto* member : members) {
      separate(first, level + 1);
      key(member->first);
      budget_.make(style_.key_separator.size());
      out_ += style_.key_separator;
      write(member->second, level + 1);
    }
    line(level);
    out_.push_back('}');
  }

  void key(const Value& key) {
    if (key.is_text()) return text(key.string());
    if (!key.is_none() && !key.is_numeric()) {
      throw type_error(std::string("keys must be str, int, float, bool or None, not ") + type_name(key));
    }
    out_.push_back('"');
    write(key, 0);
    out_.push_back('"');
  }

  std::string& out_;
  const JsonStyle& style_;
  Budget& budget_;
};

}  // namespace

std::string repr(std::string_view text) {
  std::string out;
  append_repr(out, text, is_printed);
  return out;
}

std::string repr(const Value& value, Budget& budget) {
  std::string out;
  Printer(out, budget).repr(value);
  return out;
}

void append_text(std::string& out, const Value& value, Budget& budget) {
  if (value.is_undefined()) return;
  if (!value.is_text()) return Printer(out, budget).repr(value);
  budget.make(value.string().size());
  out += value.string();
}

Value text_of(const Value& value, Budget& budget) {
  if (value.is_text()) return value;
  std::string out;
  append_text(out, value, budget);
  return out;
}

std::string to_json(const Value& value, const JsonStyle& style, Budget& budget) {
  std::string out;
  JsonWriter(out, style, budget).write(value, 0);
  return out;
}

}  // namespace l4::chat
