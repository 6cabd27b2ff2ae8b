#include "chat/filters.hpp"

#include <algorithm>
#include <array>

#include "chat/characters.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"

namespace l4::chat {

namespace {

Filter find_filter(std::string_view name) {
  for (const Filters* filters : {&text_filters(), &sequence_filters(), &choosing_filters()}) {
    if (const auto found = filters->find(name); found != filters->end()) return found->second;
  }
  return nullptr;
}

bool jinja_knows(std::string_view name) {
  static constexpr std::array<std::string_view, 16> kOthers = {
      "attr",   "e",         "escape",   "filesizeformat", "forceescape", "format",    "groupby",  "pprint",
      "random", "striptags", "truncate", "urlencode",      "urlize",      "wordcount", "wordwrap", "xmlattr"};
  return std::find(kOthers.begin(), kOthers.end(), name) != kOthers.end();
}

}  // namespace

void check_filter(const std::string& name) {
  if (find_filter(name) != nullptr || name == "safe") return;
  if (jinja_knows(name)) throw Unsupported("the filter '" + name + "'");
  throw TemplateError("No filter named " + repr(name) + ".");
}

Value apply_filter(Run& run, const std::string& name, const Value& value, const Arguments& arguments) {
  const Filter filter = find_filter(name);
  if (filter == nullptr) {
    throw TemplateError(jinja_knows(name) || name == "safe" ? "the filter '" + name + "', which this library has not"
                                                            : "No filter named " + repr(name) + ".");
  }
  return filter(run, value, arguments);
}

Getter::Getter(const std::optional<Value>& attribute, bool lowers, Budget& budget) : lowers_(lowers), budget_(budget) {
  if (!attribute || attribute->is_none()) return;
  if (!attribute->is_text()) {
    path_.push_back(*attribute);
    return;
  }
  const std::string& path = attribute->string();
  for (std::size_t begin = 0; begin <= path.size();) {
    const std::size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    const bool is_number = !part.empty() && part.size() < 18 &&
                           std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    budget.make(sizeof(Value) + part.size());
    path_.push_back(is_number ? Value(static_cast<std::int64_t>(std::stoll(part))) : Value(part));
    begin = end + 1;
  }
}

Value Getter::operator()(Value item) const {
  for (const Value& part : path_) item = item_of(item, part, budget_);
  return lowers_ ? without_case(item, budget_) : item;
}

Value without_case(const Value& value, Budget& budget) {
  if (!value.is_text()) return value;
  budget.make(value.string().size());
  return lower(value.string());
}

}  // namespace l4::chat
