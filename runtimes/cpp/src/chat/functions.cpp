#include "chat/functions.hpp"

#include <ctime>
#include <locale.h>

#include <array>
#include <chrono>

#include "chat/items.hpp"
#include "chat/operations.hpp"
#include "chat/parameters.hpp"
#include "chat/printing.hpp"

namespace l4::chat {

namespace {

constexpr std::int64_t kMostRange = 100'000;  // items, in jinja2's sandbox

Value make_range(const Arguments& arguments) {
  const std::size_t count = arguments.positional.size();
  if (!arguments.named.empty()) throw type_error("range() takes no keyword arguments");
  if (count == 0 || count > 3) {
    throw type_error("range expected at least 1 argument, at most 3, got " + std::to_string(count));
  }
  std::array<std::int64_t, 3> numbers{0, 0, 1};
  for (std::size_t i = 0; i < count; ++i) numbers[count == 1 ? 1 : i] = whole_number(arguments.positional[i]);
  if (numbers[2] == 0) throw value_error("range() arg 3 must not be zero");
  const Range range{numbers[0], numbers[1], numbers[2]};
  if (range.size() > kMostRange) {
    throw TemplateError("OverflowError: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  }
  return range;
}

// The items of dict(...): of a dict, or pairs, and then the named ones.
Dict dict_of(const Arguments& arguments, Budget& budget) {
  Dict dict;
  if (arguments.positional.size() > 1) {
    throw type_error("dict expected at most 1 argument, got " + std::to_string(arguments.positional.size()));
  }
  if (!arguments.positional.empty()) {
    const Value& from = arguments.positional[0];
    if (from.is(Kind::dict)) {
      dict = from.dict();
      budget.make(dict.size() * 4 * sizeof(Value));
    } else {
      for (const Value& pair : items_of(from, budget)) {
        const std::vector<Value> both = items_of(pair, budget);
        if (both.size() != 2) {
          throw value_error("dictionary update sequence element has length " + std::to_string(both.size()) +
                            "; 2 is required");
        }
        dict.set(both[0], both[1], budget);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) dict.set(name, value);
  return dict;
}

void check_public(const Value& name) {
  if (name.is_text() && name.string().substr(0, 1) == "_") {
    throw TemplateError("the name " + repr(name.string()) + " of a namespace starts with an underscore");
  }
}

Value make_namespace(Run& run, const Arguments& arguments) {
  Dict values = dict_of(arguments, run.budget);
  for (const auto& [name, value] : values.items()) check_public(name);
  Namespace* space = run.make_namespace();
  space->values = std::move(values);
  return space;
}

Value dict_from_keys(const Arguments& arguments, Budget& budget) {
  const std::size_t count = arguments.positional.size();
  if (count == 0 || count > 2 || !arguments.named.empty()) throw type_error("fromkeys expected 1 or 2 arguments");
  Dict dict;
  for (const Value& key : items_of(arguments.positional[0], budget)) {
    budget.make(4 * sizeof(Value));
    dict.set(key, count == 2 ? arguments.positional[1] : Value(nullptr), budget);
  }
  return make_dict(std::move(dict));
}

// What only datetime.strftime knows, as C's strftime takes it: %f, and %z and %Z, which are empty.
std::string plain_format(const std::string& format, int microseconds) {
  std::string plain;
  for (std::size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%' || at + 1 == format.size()) {
      plain.push_back(format[at]);
      continue;
    }
    const char kind = format[++at];
    if (kind == 'f') {
      std::string digits = std::to_string(microseconds);
      plain += std::string(6 - digits.size(), '0') + digits;
    } else if (kind != 'z' && kind != 'Z') {
      plain += {'%', kind};
    }
  }
  return plain;
}

Value now(const Value& format, Budget& budget) {
  if (!format.is_text()) throw type_error(std::string("strftime() argument 1 must be str, not ") + type_name(format));
  if (format.string().find('\0') != std::string::npos) throw value_error("embedded null character");
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(since).count();
  const auto seconds = static_cast<std::time_t>(microseconds / 1'000'000);
  std::tm local{};
  if (localtime_r(&seconds, &local) == nullptr) throw TemplateError("the local time is not known");
  // a text of at least one character, so that 0 means that it does not fit
  const std::string plain = plain_format(format.string(), static_cast<int>(microseconds % 1'000'000)) + ".";
  const std::size_t room = 1024 + 64 * plain.size();
  budget.make(room);
  std::string text(room, '\0');
  static const locale_t kPlain = newlocale(LC_ALL_MASK, "C", nullptr);
  const std::size_t size = strftime_l(text.data(), text.size(), plain.c_str(), &local, kPlain);
  if (size == 0) throw TemplateError("strftime_now: the date does not fit; give a shorter format");
  text.resize(size - 1);
  return text;
}

}  // namespace

std::optional<Value> environment_function(const std::string& name) {
  if (name == "range") return Function::range;
  if (name == "dict") return Function::dict;
  if (name == "namespace") return Function::name_space;
  if (name == "raise_exception") return Function::raise_exception;
  if (name == "strftime_now") return Function::strftime_now;
  return std::nullopt;
}

Value call_function(Run& run, Function function, const Arguments& arguments) {
  switch (function) {
    case Function::range: return make_range(arguments);
    case Function::dict: return make_dict(dict_of(arguments, run.budget));
    case Function::dict_fromkeys: return dict_from_keys(arguments, run.budget);
    case Function::name_space: return make_namespace(run, arguments);
    case Function::raise_exception:
      throw TemplateError(
          text_of(Parameters("raise_exception", arguments, {"message"}).required(0), run.budget).string());
    case Function::strftime_now: {
      const Parameters parameters("strftime_now", arguments, {"form"});
      return now(parameters.required(0), run.budget);
    }
  }
  throw TemplateError("an unknown function");
}

}  // namespace l4::chat
