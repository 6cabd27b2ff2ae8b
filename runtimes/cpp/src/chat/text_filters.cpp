// Filters for texts and numbers.
#include <charconv>
#include <cctype>
#include <cmath>
#include <iterator>

#include "base/decimal.hpp"
#include "chat/characters.hpp"
#include "chat/filters.hpp"
#include "chat/items.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"
#include "chat/text_methods.hpp"

namespace l4::chat {

namespace {

// The value as text: most filters for texts take anything.
Value soft(Run& run, const Value& value) { return text_of(value, run.budget); }

Value changed(Run& run, const Value& value, const Arguments& arguments, const char* name,
              std::string (*change)(std::string_view)) {
  Parameters(name, arguments, {});
  const Value text = soft(run, value);
  run.budget.make(3 * text.string().size());
  return change(text.string());
}

Value do_trim(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_trim", arguments, {"chars"});
  const Value text = soft(run, value);
  std::optional<std::string_view> characters;
  if (parameters.at(0) && !parameters.at(0)->is_none()) characters = string_of(*parameters.at(0), "strip arg");
  if (characters) run.budget.step(text.string().size() * characters->size() / 4096);
  const std::string_view rest = stripped(text.string(), Side::both, characters);
  run.budget.make(rest.size());
  return rest;
}

// Words begin behind white space and - ( { [ <.
std::string title_words(std::string_view text) {
  const auto separates = [](char32_t point) {
    return is_space(point) || point == '-' || point == '(' || point == '{' || point == '[' || point == '<';
  };
  std::string out;
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = begin;
    const bool separator = separates(utf8::next(text, end));
    for (std::size_t next = end; next < text.size() && separates(utf8::next(text, next)) == separator;) end = next;
    std::size_t first = begin;
    utf8::next(text, first);
    out += upper(text.substr(begin, first - begin)) + lower(text.substr(first, end - first));
    begin = end;
  }
  return out;
}

Value do_replace(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_replace", arguments, {"old", "new", "count"});
  const std::int64_t most = parameters.at(2) && !parameters.at(2)->is_none() ? whole_number(*parameters.at(2)) : -1;
  const Value text = soft(run, value), from = soft(run, parameters.required(0)), to = soft(run, parameters.required(1));
  return replaced(text.string(), from.string(), to.string(), most, run.budget);
}

Value do_indent(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_indent", arguments, {"width", "first", "blank"});
  const Value width = parameters.get(0, 4);
  const bool first = truth(parameters.get(1, false)), blank = truth(parameters.get(2, false));
  const Value indentation = width.is_text() ? width : compute(Operator::multiply, " ", whole_number(width), run.budget);
  const Value text = compute(Operator::add, value, "\n", run.budget);  // as jinja2 does, for splitlines
  std::string out;
  const auto put = [&](std::string_view piece) {
    run.budget.make(piece.size());
    out += piece;
  };
  bool is_first = true;
  for (const std::string_view line : lines_of(text.string(), false, run.budget)) {
    if (!is_first) put("\n");
    if (is_first ? first : blank || !line.empty()) put(indentation.string());
    put(line);
    is_first = false;
  }
  return out;
}

Value do_center(Run& run, const Value& value, const Arguments& arguments) {
  const std::int64_t width = whole_number(Parameters("do_center", arguments, {"width"}).get(0, 80));
  return padded(soft(run, value).text(), width, " ", Side::both, run.budget);
}

Value do_string(Run& run, const Value& value, const Arguments& arguments) {
  Parameters("soft_str", arguments, {});
  return soft(run, value);
}

Value do_tojson(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = truth(parameters.get(0, false));
  style.sorted = truth(parameters.get(3, false));
  const Value indent = parameters.get(1, nullptr), separators = parameters.get(2, nullptr);
  if (!indent.is_none()) {
    style.item_separator = ",";
    style.indent = indent.is_text() ? indent.string()
                                    : compute(Operator::multiply, " ", whole_number(indent), run.budget).string();
  }
  if (!separators.is_none()) {
    const std::vector<Value> both = items_of(separators, run.budget);
    if (both.size() != 2) throw value_error("separators of tojson are not two");
    style.item_separator = string_of(both[0], "a separator of tojson");
    style.key_separator = string_of(both[1], "a separator of tojson");
  }
  return to_json(value, style, run.budget);
}

Value do_default(Run&, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_default", arguments, {"default_value", "boolean"});
  const bool otherwise = value.is_undefined() || (truth(parameters.get(1, false)) && !truth(value));
  return otherwise ? parameters.get(0, "") : value;
}

// ---- Numbers ----

// Python's float(text), without the digits of other scripts; nothing where it raises ValueError.
std::optional<double> parsed_number(std::string_view text) {
  std::string plain;
  text = stripped(text, Side::both, std::nullopt);
  for (std::size_t at = 0; at < text.size(); ++at) {
    const bool digits = at > 0 && at + 1 < text.size() && std::isdigit(static_cast<unsigned char>(text[at - 1])) &&
                        std::isdigit(static_cast<unsigned char>(text[at + 1]));
    if (text[at] == '_' && digits) continue;
    plain.push_back(text[at]);
  }
  const std::string bare = lower(plain.substr(!plain.empty() && (plain[0] == '+' || plain[0] == '-')));
  const double sign = !plain.empty() && plain[0] == '-' ? -1 : 1;
  if (bare == "inf" || bare == "infinity") return sign * HUGE_VAL;
  if (bare == "nan") return std::nan("");
  double value = 0;
  if (bare.empty() || !(std::isdigit(static_cast<unsigned char>(bare[0])) || bare[0] == '.')) return std::nullopt;
  const auto [end, error] = std::from_chars(bare.data(), bare.data() + bare.size(), value);
  if (end != bare.data() + bare.size() || error == std::errc::invalid_argument) return std::nullopt;
  if (error == std::errc::result_out_of_range) value = decimal(bare);
  return sign * value;
}

// Python's int(text, base); nothing where it raises ValueError.
std::optional<std::int64_t> parsed_whole(std::string_view text, std::int64_t base) {
  text = stripped(text, Side::both, std::nullopt);
  const bool negative = !text.empty() && text[0] == '-';
  if (negative || (!text.empty() && text[0] == '+')) text.remove_prefix(1);
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  const char kind = text.size() > 1 && text[0] == '0' ? static_cast<char>(text[1] | 0x20) : '\0';
  const std::int64_t meant = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
  bool prefixed = meant != 0 && (base == 0 || base == meant);
  if (prefixed) base = meant, text.remove_prefix(2);
  const bool no_zeros = base == 0;
  if (base == 0) base = 10;
  std::string digits;
  for (std::size_t at = 0; at < text.size(); ++at) {
    if (text[at] != '_') {
      digits.push_back(text[at]);
    } else if (at + 1 == text.size() || text[at + 1] == '_' || (at == 0 && !prefixed)) {
      return std::nullopt;
    }
  }
  if (digits.empty() || digits[0] == '-' || digits[0] == '+') return std::nullopt;
  if (no_zeros && digits[0] == '0' && digits.find_first_not_of('0') != std::string::npos) return std::nullopt;
  if (negative) digits.insert(digits.begin(), '-');
  std::int64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, static_cast<int>(base));
  if (end != digits.data() + digits.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) throw overflow();
  return error == std::errc() ? std::optional<std::int64_t>(value) : std::nullopt;
}

void check_digits(const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const char32_t point = utf8::next(text, at);
    if (point >= 0x80 && has(point, kDecimal)) {
      throw TemplateError("digits of another script, which this library does not read as a number");
    }
  }
}

// int(number); nothing where it raises.
std::optional<std::int64_t> truncated(double number) {
  if (!std::isfinite(number)) return std::nullopt;
  if (std::fabs(number) >= 0x1p63) throw overflow();
  return static_cast<std::int64_t>(number);
}

Value do_int(Run&, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_int", arguments, {"default", "base"});
  const Value otherwise = parameters.get(0, 0);
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_whole()) return value.whole();
  std::optional<std::int64_t> whole;
  if (value.is(Kind::number)) {
    if (std::isinf(value.number())) throw TemplateError("OverflowError: cannot convert float infinity to integer");
    whole = truncated(value.number());
  } else if (value.is_text()) {
    check_digits(value.string());
    whole = parsed_whole(value.string(), whole_number(parameters.get(1, 10)));
    if (!whole) {
      if (const std::optional<double> number = parsed_number(value.string())) whole = truncated(*number);
    }
  }
  return whole ? Value(*whole) : otherwise;
}

Value do_float(Run&, const Value& value, const Arguments& arguments) {
  const Value otherwise = Parameters("do_float", arguments, {"default"}).get(0, 0.0);
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_numeric()) return value.number();
  if (!value.is_text()) return otherwise;
  check_digits(value.string());
  const std::optional<double> number = parsed_number(value.string());
  return number ? Value(*number) : otherwise;
}

Value do_abs(Run&, const Value& value, const Arguments& arguments) {
  Parameters("abs", arguments, {});
  if (value.is(Kind::number)) return std::fabs(value.number());
  if (!value.is_whole()) throw type_error(std::string("bad operand type for abs(): '") + type_name(value) + "'");
  return value.whole() < 0 ? negative(value) : Value(value.whole());
}

// round(number, places), half to even, as Python does it on the decimal form.
double rounded(double number, std::int64_t places) {
  if (!std::isfinite(number) || places > 330) return number;
  if (places < -310) return std::copysign(0.0, number);
  char text[700];
  const char* end = nullptr;
  if (places >= 0) {
    end = std::to_chars(text, std::end(text), number, std::chars_format::fixed, static_cast<int>(places)).ptr;
  } else {
    // digits before the point that stay, of the shortest exponent form
    const int digits =
        static_cast<int>(std::floor(std::log10(std::fabs(number == 0 ? 1 : number)))) + 1 + static_cast<int>(places);
    if (digits < 0) return std::copysign(0.0, number);
    if (digits == 0) throw TemplateError("rounding to a power of ten above the number, which this library does not do");
    end = std::to_chars(text, std::end(text), number, std::chars_format::scientific, digits - 1).ptr;
  }
  return decimal(std::string_view(text, static_cast<std::size_t>(end - text)));
}

Value do_round(Run& run, const Value& value, const Arguments& arguments) {
  const Parameters parameters("do_round", arguments, {"precision", "method"});
  const Value method = parameters.get(1, "common"), precision = parameters.get(0, 0);
  const std::string& name = string_of(method, "the method of round");
  if (name != "common" && name != "ceil" && name != "floor") {
    throw TemplateError("method must be common, ceil or floor");
  }
  if (value.is_undefined()) fail_undefined(value);
  if (!value.is_numeric()) {
    throw type_error(std::string("type ") + type_name(value) + " doesn't define __round__ method");
  }
  if (name == "common") {
    const std::int64_t places = whole_number(precision);
    if (!value.is_whole()) return rounded(value.number(), places);
    if (places >= 0) return value.whole();
    throw TemplateError("an integer rounded to tens, which this library does not do");
  }
  const Value scale = compute(Operator::power, 10, precision, run.budget);
  const double scaled = compute(Operator::multiply, value, scale, run.budget).number();
  const std::optional<std::int64_t> whole = truncated(name == "ceil" ? std::ceil(scaled) : std::floor(scaled));
  if (!whole) throw TemplateError("a number that is not finite cannot be rounded");
  return compute(Operator::divide, *whole, scale, run.budget);
}

}  // namespace

const Filters& text_filters() {
  static const Filters filters = {
      {"abs", do_abs},
      {"capitalize",
       [](Run& run, const Value& value, const Arguments& arguments) {
         return changed(run, value, arguments, "do_capitalize", capitalized);
       }},
      {"center", do_center},
      {"d", do_default},
      {"default", do_default},
      {"float", do_float},
      {"indent", do_indent},
      {"int", do_int},
      {"lower", [](Run& run, const Value& value,
                   const Arguments& arguments) { return changed(run, value, arguments, "do_lower", lower); }},
      {"replace", do_replace},
      {"round", do_round},
      {"string", do_string},
      {"title", [](Run& run, const Value& value,
                   const Arguments& arguments) { return changed(run, value, arguments, "do_title", title_words); }},
      {"tojson", do_tojson},
      {"trim", do_trim},
      {"upper", [](Run& run, const Value& value,
                   const Arguments& arguments) { return changed(run, value, arguments, "do_upper", upper); }},
  };
  return filters;
}

}  // namespace l4::chat
