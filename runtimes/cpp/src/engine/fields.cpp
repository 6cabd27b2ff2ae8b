#include "engine/fields.hpp"

#include <algorithm>

#include "base/shown.hpp"
#include "base/utf8.hpp"

namespace l4::engine {

namespace {

constexpr std::size_t kMaxText = 1000;


bool is_text(const json::Value& value) {
  if (!value.is_string() || value.string().empty()) return false;
  const std::string& text = value.string();
  std::size_t characters = 0;
  for (std::size_t at = 0; at < text.size(); ++characters) {
    if (characters == kMaxText || !utf8::is_printable(utf8::next(text, at))) return false;
  }
  return true;
}

// A name of a size: an identifier of ASCII.
bool is_size_name(const std::string& text) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  return !text.empty() && letter(text.front()) &&
         std::all_of(text.begin(), text.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

}  // namespace

std::string show(const json::Value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_null()) return "null";
  return std::string(utf8::prefix(python_repr(value), 60));
}

std::string show(const std::optional<std::int64_t>& value) { return value ? std::to_string(*value) : "null"; }

Error refusal(const std::string& where, const std::string& path, const std::string& problem) {
  return bad_input(where + ": " + path + " " + problem + "; " + kBuildAgain);
}

Fields::Fields(const json::Value& raw, std::string path, const std::string& where)
    : raw_(raw), path_(std::move(path)), where_(where) {
  if (!raw.is_object()) throw refusal(where, path_, "is " + show(raw) + "; expected an object");
}

std::string Fields::at(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

void Fields::refuse(const std::string& name, const std::string& problem) const {
  throw refusal(where_, at(name), problem);
}

const json::Value& Fields::value(const std::string& name) const {
  const json::Value* found = raw_.find(name);
  if (found == nullptr) refuse(name, "is missing");
  return *found;
}

std::string Fields::text(const std::string& name) const { return text_of(name, value(name)); }

std::vector<std::string> Fields::texts(const std::string& name) const {
  std::vector<std::string> found;
  for (const json::Value& item : array(name)) found.push_back(text_of(indexed(name, found.size()), item));
  return found;
}

std::string Fields::choice(const std::string& name, std::initializer_list<std::string_view> known) const {
  std::string value = text(name), list;
  if (std::find(known.begin(), known.end(), value) != known.end()) return value;
  for (const std::string_view each : known) (list += list.empty() ? "" : ", ") += each;
  refuse(name, "is " + show(value) + ", which is not one of " + list);
}

bool Fields::flag(const std::string& name) const {
  const json::Value& found = value(name);
  if (!found.is_boolean()) refuse(name, "is " + show(found) + "; expected true or false");
  return found.boolean();
}

std::int64_t Fields::count(const std::string& name, std::int64_t least) const {
  return count_of(name, value(name), least);
}

std::optional<std::int64_t> Fields::count_or_null(const std::string& name) const {
  if (value(name).is_null()) return std::nullopt;
  return count(name);
}

std::vector<std::int64_t> Fields::counts(const std::string& name, std::int64_t least) const {
  std::vector<std::int64_t> found;
  for (const json::Value& item : array(name)) found.push_back(count_of(indexed(name, found.size()), item, least));
  return found;
}

std::vector<Dimension> Fields::shape(const std::string& name) const {
  std::vector<Dimension> found;
  for (const json::Value& item : array(name)) {
    if (item.is_string() && is_size_name(item.string())) {
      found.push_back({0, item.string()});
    } else {
      found.push_back({count_of(indexed(name, found.size()), item, 1), ""});
    }
  }
  return found;
}

std::string Fields::file(const std::string& name) const {
  std::string found = text(name);
  check_file(name, found);
  return found;
}

Fields Fields::child(const std::string& name) const { return Fields(value(name), at(name), where_); }

std::vector<Fields> Fields::children(const std::string& name) const {
  std::vector<Fields> found;
  for (const json::Value& item : array(name)) found.emplace_back(item, at(indexed(name, found.size())), where_);
  return found;
}

Named<Fields> Fields::named() const {
  Named<Fields> found;
  for (const auto& [name, item] : raw_.object().members()) {
    text_of("a name", name);
    found.add(name, Fields(item, at(name), where_));
  }
  return found;
}

Named<Fields> Fields::files() const {
  Named<Fields> found = named();
  for (const auto& [name, fields] : found) check_file(show(name), name);
  return found;
}

const json::Array& Fields::array(const std::string& name) const {
  const json::Value& found = value(name);
  if (!found.is_array()) refuse(name, "is " + show(found) + "; expected an array");
  return found.array();
}

std::string Fields::text_of(const std::string& name, const json::Value& value) const {
  if (!is_text(value)) {
    refuse(name, "is " + show(value) + "; expected 1 to " + std::to_string(kMaxText) + " printable characters");
  }
  return value.string();
}

std::int64_t Fields::count_of(const std::string& name, const json::Value& value, std::int64_t least) const {
  if (!value.is_integer() || value.integer() < least || value.integer() > kMaxInteger) {
    refuse(name, "is " + show(value) + "; expected an integer from " + std::to_string(least) + " to " +
                     std::to_string(kMaxInteger));
  }
  return value.integer();
}

// Nothing in a manifest leads outside of its directory.
void Fields::check_file(const std::string& name, const std::string& file) const {
  if (file == "." || file == ".." || file.find_first_of("/\\") != std::string::npos) {
    refuse(name, "is the file name " + show(file) + ", which leads outside the engine");
  }
}

}  // namespace l4::engine
