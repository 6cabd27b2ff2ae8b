#include "base/shown.hpp"

#include <cmath>
#include <cstdio>

#include "base/error.hpp"
#include "base/utf8.hpp"

namespace l4 {
void append_repr(std::string& out, std::string_view text, bool (*is_printable)(char32_t)) {
  const bool doubled = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  out.push_back(quote);
  char escape[12];
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t point = utf8::next(text, at);
    if (point == '\\' || point == static_cast<char32_t>(quote)) {
      out += {'\\', static_cast<char>(point)};
    } else if (point == '\n' || point == '\r' || point == '\t') {
      out += point == '\n' ? "\\n" : point == '\r' ? "\\r" : "\\t";
    } else if (is_printable(point)) {
      out.append(text, begin, at - begin);
    } else {
      const char* form = point < 0x100 ? "\\x%02x" : point < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escape, sizeof escape, form, static_cast<unsigned>(point));
      out += escape;
    }
  }
  out.push_back(quote);
}

namespace {

std::string repr_of(const std::string& text) {
  std::string out;
  append_repr(out, text, utf8::is_printable);
  return out;
}

}  // namespace

std::string python_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return json::dump(value);  // which writes a finite number as Python does
}

std::string python_repr(const json::Value& value) {
  std::string out;
  const auto separate = [&] {
    if (out.size() > 1) out += ", ";
  };
  switch (value.kind()) {
    case json::Kind::null: return "None";
    case json::Kind::boolean: return value.boolean() ? "True" : "False";
    case json::Kind::integer: return std::to_string(value.integer());
    case json::Kind::number: return python_repr(value.number());
    case json::Kind::string: return repr_of(value.string());
    case json::Kind::array:
      out = "[";
      for (const json::Value& item : value.array()) separate(), out += python_repr(item);
      return out + "]";
    case json::Kind::object:
      out = "{";
      for (const auto& [key, item] : value.object().members())
        separate(), out += repr_of(key) + ": " + python_repr(item);
      return out + "}";
  }
  return out;
}

std::string shown(const json::Value& value) {
  const std::string text = printable(python_repr(value), std::string::npos);
  std::size_t characters = 0, at = 0, cut = 0;
  for (; at < text.size(); at += utf8::width(static_cast<unsigned char>(text[at])), ++characters) {
    if (characters == 57) cut = at;
  }
  return characters <= 60 ? text : text.substr(0, cut) + "...";
}

}  // namespace l4
