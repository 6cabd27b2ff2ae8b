#include "chat/text_search.hpp"

#include <algorithm>

#include "chat/characters.hpp"
#include "chat/operations.hpp"
#include "chat/parameters.hpp"
#include "chat/text_find.hpp"
#include "chat/text_methods.hpp"

namespace l4::chat {

namespace {

struct Part {  // of a text, between `start` and `end` as Python's methods take them
  std::string_view text;
  std::size_t start;  // in characters
  bool exists;        // not where start lies behind the end
};

Part part_of(const Text& text, const std::optional<Value>& start, const std::optional<Value>& end) {
  const auto size = static_cast<std::int64_t>(text.points);
  const auto bound = [&](const std::optional<Value>& value, std::int64_t otherwise) {
    const std::int64_t at = value && !value->is_none() ? whole_number(*value) : otherwise;
    return at < 0 ? std::max<std::int64_t>(at + size, 0) : at;
  };
  const std::int64_t first = bound(start, 0), behind = std::min(bound(end, size), size);
  if (first > behind) return {"", static_cast<std::size_t>(std::min(first, size)), false};
  return {characters(text, static_cast<std::size_t>(first), static_cast<std::size_t>(behind)),
          static_cast<std::size_t>(first), true};
}

std::int64_t count_of(const Part& part, const Text& wanted) {
  if (!part.exists) return 0;
  if (wanted.points == 0) return static_cast<std::int64_t>(utf8_length(part.text)) + 1;
  std::int64_t count = 0;
  for (std::size_t at = found_in(part.text, wanted.bytes); at != std::string_view::npos;
       at = found_in(part.text, wanted.bytes, at + wanted.bytes.size())) {
    ++count;
  }
  return count;
}

Value find_in(const Value& self, const std::string& name, const Arguments& arguments) {
  const Parameters parameters(name, arguments, {"sub", "start", "end"});
  const Part part = part_of(self.text(), parameters.at(1), parameters.at(2));
  const Value& wanted = parameters.required(0);
  string_of(wanted, "must be str: the argument of " + name + "()");
  if (name == "count") return count_of(part, wanted.text());
  const bool backwards = name[0] == 'r';
  const std::size_t at = !part.exists ? std::string_view::npos
                         : backwards  ? last_found_in(part.text, wanted.string())
                                      : found_in(part.text, wanted.string());
  if (at != std::string_view::npos) return static_cast<std::int64_t>(part.start + utf8_length(part.text.substr(0, at)));
  if (name == "index" || name == "rindex") throw value_error("substring not found");
  return -1;
}

Value begins_or_ends(const Value& self, const std::string& name, const Arguments& arguments) {
  const Parameters parameters(name, arguments, {"prefix", "start", "end"});
  const Part part = part_of(self.text(), parameters.at(1), parameters.at(2));
  const auto fits = [&](const Value& affix) {
    if (!affix.is_text()) throw type_error(name + " first arg must be str or a tuple of str, not " + type_name(affix));
    const std::string& text = affix.string();
    if (!part.exists || text.size() > part.text.size()) return false;
    return part.text.substr(name == "startswith" ? 0 : part.text.size() - text.size(), text.size()) == text;
  };
  const Value& affix = parameters.required(0);
  if (!affix.is(Kind::tuple)) return fits(affix);
  const std::vector<Value>& affixes = affix.sequence().items;
  return std::any_of(affixes.begin(), affixes.end(), fits);
}

class Splitter {
 public:
  Splitter(std::string_view text, std::int64_t most, Budget& budget)
      : text_(text), most_(most < 0 ? INT64_MAX : most), budget_(budget) {}

  Value at_space() {
    std::string_view rest = stripped(text_, Side::left, std::nullopt);
    while (!rest.empty()) {
      if (static_cast<std::int64_t>(parts_.size()) == most_) {
        add(rest);  // as it ends
        break;
      }
      std::size_t end = 0;
      while (end < rest.size()) {
        std::size_t next = end;
        if (is_space(utf8::next(rest, next))) break;
        end = next;
      }
      add(rest.substr(0, end));
      rest = stripped(rest.substr(end), Side::left, std::nullopt);
    }
    return make_list(std::move(parts_));
  }

  Value at_space_from_right() {
    std::string_view rest = stripped(text_, Side::right, std::nullopt);
    while (!rest.empty()) {
      if (static_cast<std::int64_t>(parts_.size()) == most_) {
        add(rest);  // as it begins
        break;
      }
      std::size_t begin = rest.size();
      while (begin > 0) {
        std::size_t before = begin - 1;
        while ((static_cast<unsigned char>(rest[before]) & 0xC0) == 0x80) --before;
        std::size_t at = before;
        if (is_space(utf8::next(rest, at))) break;
        begin = before;
      }
      add(rest.substr(begin));
      rest = stripped(rest.substr(0, begin), Side::right, std::nullopt);
    }
    std::reverse(parts_.begin(), parts_.end());
    return make_list(std::move(parts_));
  }

  Value at(const std::string& separator) {
    std::string_view rest = text_;
    for (std::size_t found; static_cast<std::int64_t>(parts_.size()) < most_ &&
                            (found = found_in(rest, separator)) != std::string_view::npos;) {
      add(rest.substr(0, found));
      rest.remove_prefix(found + separator.size());
    }
    add(rest);
    return make_list(std::move(parts_));
  }

  Value at_from_right(const std::string& separator) {
    // turned round, the last separator is the first one
    budget_.make(text_.size());
    const std::string backwards(text_.rbegin(), text_.rend()), end(separator.rbegin(), separator.rend());
    std::size_t behind = text_.size();  // what is left ends here
    for (std::size_t found; static_cast<std::int64_t>(parts_.size()) < most_ &&
                            (found = found_in(backwards, end, text_.size() - behind)) != std::string_view::npos;) {
      const std::size_t begin = text_.size() - found;
      add(text_.substr(begin, behind - begin));
      behind = begin - separator.size();
    }
    add(text_.substr(0, behind));
    std::reverse(parts_.begin(), parts_.end());
    return make_list(std::move(parts_));
  }

 private:
  void add(std::string_view part) {
    budget_.make(sizeof(Value) + sizeof(Text) + part.size());
    parts_.emplace_back(part);
  }

  std::string_view text_;
  std::int64_t most_;
  Budget& budget_;
  std::vector<Value> parts_;
};

Value split(Run& run, const Value& self, const std::string& name, const Arguments& arguments) {
  const Parameters parameters(name, arguments, {"sep", "maxsplit"});
  Splitter splitter(self.string(), parameters.at(1) ? whole_number(*parameters.at(1)) : -1, run.budget);
  const bool from_right = name == "rsplit";
  if (!parameters.at(0) || parameters.at(0)->is_none()) {
    return from_right ? splitter.at_space_from_right() : splitter.at_space();
  }
  const std::string& separator = string_of(*parameters.at(0), "the separator");
  if (separator.empty()) throw value_error("empty separator");
  return from_right ? splitter.at_from_right(separator) : splitter.at(separator);
}

Value partition(const Value& self, const std::string& name, const Arguments& arguments) {
  const std::string& text = self.string();
  const Value& mark = Parameters(name, arguments, {"sep"}).required(0);
  const std::string& separator = string_of(mark, "the separator");
  if (separator.empty()) throw value_error("empty separator");
  const bool from_right = name == "rpartition";
  const std::size_t at = from_right ? last_found_in(text, separator) : found_in(text, separator);
  if (at == std::string::npos) return from_right ? make_tuple({"", "", self}) : make_tuple({self, "", ""});
  return make_tuple({text.substr(0, at), mark, text.substr(at + separator.size())});
}

}  // namespace

std::string replaced(const std::string& text, const std::string& from, const std::string& to, std::int64_t most,
                     Budget& budget) {
  std::string out;
  std::int64_t count = 0;
  const auto put = [&](std::string_view piece) {
    budget.make(piece.size());
    out += piece;
  };
  std::size_t at = 0;
  if (from.empty()) {  // before each character, and behind the last
    for (; count != most; ++count) {
      put(to);
      if (at == text.size()) return out;
      const std::size_t width = utf8::width(static_cast<unsigned char>(text[at]));
      put(std::string_view(text).substr(at, width));
      at += width;
    }
  } else {
    for (std::size_t found; count != most && (found = found_in(text, from, at)) != std::string::npos; ++count) {
      put(std::string_view(text).substr(at, found - at));
      put(to);
      at = found + from.size();
    }
  }
  put(std::string_view(text).substr(at));
  return out;
}

Value call_of_search(Run& run, const Value& self, const std::string& name, const Arguments& arguments) {
  run.budget.step(self.string().size() / 8);
  if (name == "startswith" || name == "endswith") return begins_or_ends(self, name, arguments);
  if (name == "split" || name == "rsplit") return split(run, self, name, arguments);
  if (name == "partition" || name == "rpartition") return partition(self, name, arguments);
  if (name == "count" || name == "find" || name == "index" || name == "rfind" || name == "rindex") {
    return find_in(self, name, arguments);
  }
  throw TemplateError("the method '" + name + "' of a text, which this library has not");
}

}  // namespace l4::chat
