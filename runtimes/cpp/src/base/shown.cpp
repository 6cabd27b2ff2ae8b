#include "base/shown.hpp"

#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/error.hpp"
#include "base/utf8.hpp"

namespace l4 {
namespace {

std::string repr_of(const std::string& text) {
  const bool other = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = other ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t point = utf8::next(text, at);
    char escape[12];
    switch (point) {
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (point == static_cast<unsigned char>(quote)) {
          out += {'\\', quote};
        } else if (!utf8::is_printable(point)) {
          const char* form = point < 0x100 ? "\\x%02x" : point < 0x10000 ? "\\u%04x" : "\\U%08x";
          std::snprintf(escape, sizeof escape, form, static_cast<unsigned>(point));
          out += escape;
        } else {
          out.append(text, begin, at - begin);
        }
    }
  }
  return out + quote;
}

}  // namespace

std::string python_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  const auto scientific = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string text(buffer, scientific.ptr);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;
  char digits[400];
  const auto fixed = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed);
  std::string plain(digits, fixed.ptr);
  return plain.find('.') == std::string::npos ? plain + ".0" : plain;
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
