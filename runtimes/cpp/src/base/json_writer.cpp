#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/json.hpp"
#include "base/utf8.hpp"

namespace l4::json {

void dump_string(std::string& out, std::string_view text, bool ascii) {
  char escape[16];
  out.push_back('"');
  for (std::size_t at = 0; at < text.size();) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte >= 0x80 && ascii) {
      const char32_t point = utf8::next(text, at);
      if (point >= 0x10000) {
        const unsigned high = 0xD800 + ((point - 0x10000) >> 10), low = 0xDC00 + ((point - 0x10000) & 0x3FF);
        std::snprintf(escape, sizeof escape, "\\u%04x\\u%04x", high, low);
      } else {
        std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(point));
      }
      out += escape;
      continue;
    }
    ++at;
    switch (byte) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (byte < 0x20) {
          std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(byte));
          out += escape;
        } else {
          out.push_back(static_cast<char>(byte));
        }
    }
  }
  out.push_back('"');
}

namespace {

// The shortest text that reads back as the same double, in Python's form.
void dump_number(std::string& out, double value) {
  if (std::isnan(value)) { out += "NaN"; return; }
  if (std::isinf(value)) { out += value < 0 ? "-Infinity" : "Infinity"; return; }
  char text[40];
  const double magnitude = std::fabs(value);
  const bool plain = value == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  const auto end =
      std::to_chars(text, text + sizeof text, value, plain ? std::chars_format::fixed : std::chars_format::scientific)
          .ptr;
  out.append(text, end);
  if (plain && std::string_view(text, end - text).find('.') == std::string_view::npos) out += ".0";
}

void dump_value(std::string& out, const Value& value, bool ascii, bool spaced) {
  bool first = true;
  const auto separate = [&] {
    if (!first) out += spaced ? ", " : ",";
    first = false;
  };
  switch (value.kind()) {
    case Kind::null: out += "null"; break;
    case Kind::boolean: out += value.boolean() ? "true" : "false"; break;
    case Kind::integer: out += std::to_string(value.integer()); break;
    case Kind::number: dump_number(out, value.number()); break;
    case Kind::string: dump_string(out, value.string(), ascii); break;
    case Kind::array:
      out.push_back('[');
      for (const Value& item : value.array()) separate(), dump_value(out, item, ascii, spaced);
      out.push_back(']');
      break;
    case Kind::object:
      out.push_back('{');
      for (const auto& [key, item] : value.object().members()) {
        separate();
        dump_string(out, key, ascii);
        out += spaced ? ": " : ":";
        dump_value(out, item, ascii, spaced);
      }
      out.push_back('}');
      break;
  }
}

}  // namespace

std::string dump(const Value& value, bool ascii, bool spaced) {
  std::string out;
  dump_value(out, value, ascii, spaced);
  return out;
}

}  // namespace l4::json
