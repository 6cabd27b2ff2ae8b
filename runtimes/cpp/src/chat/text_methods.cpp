#include "chat/text_methods.hpp"

#include <algorithm>
#include <unordered_map>

#include "chat/characters.hpp"
#include "chat/items.hpp"
#include "chat/operations.hpp"
#include "chat/parameters.hpp"
#include "chat/printing.hpp"
#include "chat/text_search.hpp"

namespace l4::chat {

namespace {

// Whether all characters have a property, and there are some.
bool all(const std::string& text, std::uint16_t wanted) {
  for (std::size_t at = 0; at < text.size();) {
    if (!has(utf8::next(text, at), wanted)) return false;
  }
  return !text.empty();
}

// Letters are all of one case, and there are some.
bool is_case(const std::string& text, std::uint16_t wanted) {
  bool found = false;
  for (std::size_t at = 0; at < text.size();) {
    const std::uint16_t kinds = properties(utf8::next(text, at)) & kCased;
    if (kinds & ~wanted) return false;
    found = found || kinds != 0;
  }
  return found;
}

bool is_title(const std::string& text) {
  bool within = false, found = false;
  for (std::size_t at = 0; at < text.size();) {
    const std::uint16_t kinds = properties(utf8::next(text, at));
    if (kinds & (kUpper | kTitle)) {
      if (within) return false;
      within = found = true;
    } else if (kinds & kLower) {
      if (!within) return false;
      found = true;
    } else {
      within = false;
    }
  }
  return found;
}

bool is_only_space(const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    if (!chat::is_space(utf8::next(text, at))) return false;
  }
  return !text.empty();
}

bool is_printable(const std::string& text) { return text.empty() || all(text, kPrintable); }

std::string joined(const Value& self, const Value& items, Budget& budget) {
  std::string out;
  std::size_t index = 0;
  Items each(items, budget);
  for (Value item; each.next(item); ++index) {
    if (!item.is_text()) {
      throw type_error("sequence item " + std::to_string(index) + ": expected str instance, " + type_name(item) +
                       " found");
    }
    budget.make(self.string().size() + item.string().size());
    if (index != 0) out += self.string();
    out += item.string();
  }
  return out;
}

std::string expanded(const std::string& text, std::int64_t size, Budget& budget) {
  std::string out;
  std::int64_t column = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t begin = at;
    const char32_t point = utf8::next(text, at);
    if (point == '\t') {
      const std::int64_t count = size > 0 ? size - column % size : 0;
      budget.make(static_cast<std::size_t>(std::min(count, kMostBytes + 1)));
      out.append(static_cast<std::size_t>(count), ' ');
      column += count;
    } else {
      out.append(text, begin, at - begin);
      column = point == '\n' || point == '\r' ? 0 : column + 1;
    }
  }
  return out;
}

Value split_lines(const std::string& text, bool keep_ends, Budget& budget) {
  std::vector<Value> lines;
  for (const std::string_view line : lines_of(text, keep_ends, budget)) {
    budget.make(sizeof(Value) + sizeof(Text) + line.size());
    lines.emplace_back(line);
  }
  return make_list(std::move(lines));
}

std::string zero_filled(const Text& text, std::int64_t width, Budget& budget) {
  const std::size_t sign = !text.bytes.empty() && (text.bytes[0] == '+' || text.bytes[0] == '-');
  std::string filled = padded(text, width, "0", Side::right, budget);
  const std::size_t zeros = filled.size() - text.bytes.size();
  if (sign != 0 && zeros != 0) std::swap(filled[0], filled[zeros]);
  return filled;
}

std::string_view fill_of(const Parameters& parameters) {
  if (!parameters.at(1)) return " ";
  const std::string& fill = string_of(*parameters.at(1), "the fill character");
  if (parameters.at(1)->text().points != 1) throw type_error("The fill character must be exactly one character long");
  return fill;
}

using Answer = bool (*)(const std::string&);
const std::unordered_map<std::string_view, Answer>& questions() {
  static const std::unordered_map<std::string_view, Answer> all_of = {
      {"isalpha", [](const std::string& text) { return all(text, kAlphabetic); }},
      {"isdecimal", [](const std::string& text) { return all(text, kDecimal); }},
      {"isdigit", [](const std::string& text) { return all(text, kDigit); }},
      {"isnumeric", [](const std::string& text) { return all(text, kNumeric); }},
      {"isalnum", [](const std::string& text) { return all(text, kAlphabetic | kDecimal | kDigit | kNumeric); }},
      {"isascii",
       [](const std::string& text) {
         return std::all_of(text.begin(), text.end(), [](char c) { return !(c & 0x80); });
       }},
      {"islower", is_lower},
      {"isupper", is_upper},
      {"istitle", is_title},
      {"isspace", is_only_space},
      {"isprintable", is_printable},
  };
  return all_of;
}

using Change = std::string (*)(std::string_view);
const std::unordered_map<std::string_view, Change>& changes() {
  static const std::unordered_map<std::string_view, Change> all_of = {
      {"upper", upper}, {"lower", lower}, {"swapcase", swapcase}, {"capitalize", capitalized}, {"title", titled}};
  return all_of;
}

}  // namespace

bool is_lower(const std::string& text) { return is_case(text, kLower); }
bool is_upper(const std::string& text) { return is_case(text, kUpper); }

std::string_view stripped(std::string_view text, Side side, const std::optional<std::string_view>& characters) {
  const auto goes = [&](std::string_view point) {
    std::size_t at = 0;
    return characters ? characters->find(point) != std::string_view::npos : chat::is_space(utf8::next(point, at));
  };
  while (side != Side::right && !text.empty()) {
    const std::size_t width = utf8::width(static_cast<unsigned char>(text[0]));
    if (!goes(text.substr(0, width))) break;
    text.remove_prefix(width);
  }
  while (side != Side::left && !text.empty()) {
    std::size_t begin = text.size() - 1;
    while ((static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!goes(text.substr(begin))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

std::vector<std::string_view> lines_of(std::string_view text, bool keep_ends, Budget& budget) {
  std::vector<std::string_view> lines;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = at;
    const char32_t point = utf8::next(text, at);
    if (!is_line_end(point)) continue;
    if (point == '\r' && at < text.size() && text[at] == '\n') ++at;
    budget.make(sizeof(std::string_view));
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string padded(const Text& text, std::int64_t width, std::string_view fill, Side side, Budget& budget) {
  const std::int64_t missing = width - static_cast<std::int64_t>(text.points);
  if (missing <= 0) return text.bytes;
  if (missing > kMostBytes) throw LimitExceeded("it needs too much memory");
  budget.make(text.bytes.size() + static_cast<std::size_t>(missing) * fill.size());
  // where the text stands in the middle, Python puts the odd one to the left if the width is odd
  const std::int64_t left = side == Side::left    ? 0
                            : side == Side::right ? missing
                                                  : missing / 2 + (missing & width & 1);
  std::string out;
  for (std::int64_t i = 0; i < left; ++i) out += fill;
  out += text.bytes;
  for (std::int64_t i = left; i < missing; ++i) out += fill;
  return out;
}

Value call_of_text(Run& run, const Value& self, const std::string& name, const Arguments& arguments) {
  const std::string& text = self.string();
  Budget& budget = run.budget;
  budget.make(text.size());
  if (const auto question = questions().find(name); question != questions().end()) {
    Parameters(name, arguments, {});
    return question->second(text);
  }
  if (const auto change = changes().find(name); change != changes().end()) {
    Parameters(name, arguments, {});
    budget.make(2 * text.size());
    return change->second(text);
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Parameters parameters(name, arguments, {"chars"});
    std::optional<std::string_view> characters;
    if (parameters.at(0) && !parameters.at(0)->is_none()) characters = string_of(*parameters.at(0), "strip arg");
    if (characters) budget.step(text.size() * characters->size() / 4096);  // each may be looked for in all of them
    return stripped(text, name == "strip" ? Side::both : name == "lstrip" ? Side::left : Side::right, characters);
  }
  if (name == "replace") {
    const Parameters parameters(name, arguments, {"old", "new", "count"});
    const std::int64_t most = parameters.at(2) ? whole_number(*parameters.at(2)) : -1;
    return replaced(text, string_of(parameters.required(0), "replace() argument 1"),
                    string_of(parameters.required(1), "replace() argument 2"), most, budget);
  }
  if (name == "join") return joined(self, Parameters(name, arguments, {"iterable"}).required(0), budget);
  if (name == "center" || name == "ljust" || name == "rjust") {
    const Parameters parameters(name, arguments, {"width", "fillchar"});
    const Side side = name == "center" ? Side::both : name == "ljust" ? Side::left : Side::right;
    return padded(self.text(), whole_number(parameters.required(0)), fill_of(parameters), side, budget);
  }
  if (name == "zfill") {
    return zero_filled(self.text(), whole_number(Parameters(name, arguments, {"width"}).required(0)), budget);
  }
  if (name == "splitlines") {
    return split_lines(text, truth(Parameters(name, arguments, {"keepends"}).get(0, false)), budget);
  }
  if (name == "expandtabs") {
    return expanded(text, whole_number(Parameters(name, arguments, {"tabsize"}).get(0, 8)), budget);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& affix = string_of(Parameters(name, arguments, {"affix"}).required(0), name + "() argument");
    const bool fits = text.size() >= affix.size(), is_prefix = name == "removeprefix";
    if (!fits || text.compare(is_prefix ? 0 : text.size() - affix.size(), affix.size(), affix) != 0) return self;
    return is_prefix ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size());
  }
  return call_of_search(run, self, name, arguments);
}

}  // namespace l4::chat
