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
  for (const char c : text) {
    char escape[8];
    switch (c) {
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (c == quote) {
          out += {'\\', c};
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
          std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(c));
          out += escape;
        } else {
          out.push_back(c);
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
