#include "text/text_files.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>

#include "base/error.hpp"
#include "base/json.hpp"
#include "base/utf8.hpp"
#include "storage/files.hpp"
#include "storage/json_document.hpp"

namespace l4::text {

namespace {

namespace fs = std::filesystem;
using json::Value;
using storage::in_directory;

constexpr std::uint64_t kSmallFileBytes = 16 << 20;  // Llama 4's tokenizer_config.json has 0.3 MB
constexpr std::size_t kMostTemplates = 64;
constexpr const char* kRemedy = "copy it from the checkpoint again";
constexpr const char* kTemplateFolder = "additional_chat_templates";
constexpr std::array kSpecialTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                       "pad_token", "cls_token", "mask_token"};  // those that every tokenizer may name

bool is_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string read_text(const std::string& path) {
  std::string text = storage::read_small(path, kSmallFileBytes, "restore or remove it");
  const std::size_t bad = utf8::first_invalid(text);
  if (bad != utf8::npos) throw bad_input(path + ": byte " + std::to_string(bad) + " is not UTF-8; " + kRemedy);
  if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) text.erase(0, 3);
  return text;
}

// An absent file is an empty object.
json::Object read_json(const std::string& path) {
  return storage::is_there(path) ? storage::parse_json_object(read_text(path), path).object() : json::Object();
}

// What Python's `or` passes over.
bool is_false(const Value* value) {
  if (value == nullptr || value->is_null()) return true;
  if (value->is_boolean()) return !value->boolean();
  if (value->is_number()) return value->number() == 0;
  if (value->is_string()) return value->string().empty();
  return value->is_array() ? value->array().empty() : value->object().size() == 0;
}

// The text of a special token, which is given plainly or as an object with "content"; empty: there is none.
std::string content_of(const Value* token) {
  if (token != nullptr && token->is_object()) token = token->find("content");
  return token != nullptr && token->is_string() ? token->string() : "";
}

void set(NamedTexts& texts, const std::string& name, std::string text) {
  const auto known = std::find_if(texts.begin(), texts.end(), [&](const auto& item) { return item.first == name; });
  if (known == texts.end()) {
    texts.emplace_back(name, std::move(text));
  } else {
    known->second = std::move(text);
  }
}

// ---- chat templates

NamedTexts read_jinja_files(const std::string& directory) {
  std::vector<std::pair<std::string, std::string>> found;  // name and path
  std::vector<fs::path> paths;
  const auto add_from = [&](const std::string& folder, const std::string& prefix) {
    std::error_code none;  // a folder that is not there has no templates
    for (fs::directory_iterator at(folder, none), end; !none && at != end; at.increment(none)) {
      const std::string name = at->path().filename().string();
      const bool fits = name.size() >= prefix.size() + 6 && name.compare(0, prefix.size(), prefix) == 0;
      if (fits && name.compare(name.size() - 6, 6, ".jinja") == 0) paths.push_back(at->path());
    }
  };
  const std::string prefix = std::string(kTemplateFolder) + ".";
  add_from(in_directory(directory, kTemplateFolder), "");
  std::sort(paths.begin(), paths.end());
  const auto in_folder = static_cast<std::ptrdiff_t>(paths.size());
  add_from(directory, prefix);
  std::sort(paths.begin() + in_folder, paths.end());
  const std::string main = in_directory(directory, "chat_template.jinja");
  if (is_file(main)) set(found, "default", main);
  for (const fs::path& path : paths) {
    std::string name = path.filename().string();
    if (name.compare(0, prefix.size(), prefix) == 0) name.erase(0, prefix.size());
    set(found, name.substr(0, name.size() - 6), path.string());
  }
  if (found.size() > kMostTemplates) {
    throw bad_input(directory + ": " + std::to_string(found.size()) + " chat templates, at most " +
                    std::to_string(kMostTemplates) + " are read; remove some");
  }
  for (auto& [name, text] : found) text = read_text(std::string(text));
  return found;
}

// Templates as JSON has them: one text, a list of {name, template}, or an object of names and texts.
NamedTexts named_templates(const Value* value, const std::string& path) {
  NamedTexts found;
  bool good = true;
  const auto add = [&](const Value* name, const Value* text) {
    good = good && name != nullptr && name->is_string() && text != nullptr && text->is_string();
    if (good) set(found, name->string(), text->string());
  };
  const Value fallback("default");
  if (value == nullptr || value->is_null()) return found;
  if (value->is_array()) {
    for (const Value& item : value->array()) add(item.find("name"), item.find("template"));
  } else if (value->is_object()) {
    for (const auto& [name, text] : value->object().members()) {
      const Value key(name);
      add(&key, &text);
    }
  } else {
    add(&fallback, value);
  }
  if (!good) {
    throw bad_input(path + ": chat_template is neither text nor a list of name and template: correct or remove it");
  }
  return found;
}

// The tokenizer's own: files of their own come before the configuration.
NamedTexts tokenizer_templates(const std::string& directory, const json::Object& config, std::string& source) {
  NamedTexts found = read_jinja_files(directory);
  if (!found.empty()) {
    const bool has_default =
        std::any_of(found.begin(), found.end(), [](const auto& one) { return one.first == "default"; });
    source = has_default ? "chat_template.jinja" : kTemplateFolder;
    return found;
  }
  source = "tokenizer_config.json";
  return named_templates(config.find("chat_template"), in_directory(directory, source));
}

// Those of an image model's processor, where it has its own.
NamedTexts processor_templates(const std::string& directory, std::string& source) {
  for (const char* name : {"processor_config.json", "chat_template.json"}) {
    const std::string path = in_directory(directory, name);
    if (!is_file(path)) continue;
    const json::Object config = read_json(path);
    const Value* found = config.find("chat_template");
    if (found == nullptr || found->is_null()) continue;
    source = name;
    return named_templates(found, path);
  }
  return {};
}

// ---- special and added tokens

// Special tokens with names, which templates see; the contents of those without go to `extra`.
NamedTexts special_tokens(const json::Object& config, std::vector<std::string>& extra) {
  const Value* listed = config.find("extra_special_tokens");
  if (is_false(listed)) listed = config.find("additional_special_tokens");
  json::Object named;
  for (const auto& [name, value] : config.members()) {
    if (name.size() >= 6 && name.compare(name.size() - 6, 6, "_token") == 0) named.set(name, value);
  }
  for (const Value* more : {listed, config.find("model_specific_special_tokens")}) {
    if (more == nullptr || !more->is_object()) continue;
    for (const auto& [name, value] : more->object().members()) named.set(name, value);
  }
  NamedTexts tokens;
  const auto add = [&](const std::string& name, const Value* value) {
    if (std::string text = content_of(value); !text.empty()) set(tokens, name, std::move(text));
  };
  for (const char* name : kSpecialTokens) add(name, named.find(name));
  for (const auto& [name, value] : named.members()) add(name, &value);
  if (listed != nullptr && listed->is_array()) {
    for (const Value& item : listed->array()) {
      if (std::string text = content_of(&item); !text.empty()) extra.push_back(std::move(text));
    }
  }
  return tokens;
}

// A token with its flags; those that are not given are as the library has them.
AddedToken token_with(const Value& entry, bool special) {
  AddedToken token;
  const auto flag = [&](const char* name, bool otherwise) {
    const Value* found = entry.find(name);
    return found != nullptr && found->is_boolean() ? found->boolean() : otherwise;
  };
  token.content = content_of(&entry);
  token.special = special;
  token.single_word = flag("single_word", false);
  token.lstrip = flag("lstrip", false);
  token.rstrip = flag("rstrip", false);
  token.normalized = flag("normalized", !special);
  return token;
}

template <typename IsNamed>
void add_decoder_tokens(const std::string& path, const Value& entries, const IsNamed& is_named,
                        std::vector<AddedEntry>& added) {
  const auto refuse = [&]() -> Error {
    return bad_input(path + ": added_tokens_decoder is no object of ids and tokens; correct or remove it");
  };
  if (!entries.is_object()) throw refuse();
  std::vector<std::pair<std::int64_t, const Value*>> by_id;
  for (const auto& [key, entry] : entries.object().members()) {
    std::int64_t id = 0;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const Value* content = entry.find("content");
    if (error != std::errc() || end != key.data() + key.size() || content == nullptr || !content->is_string()) {
      throw refuse();
    }
    by_id.emplace_back(id, &entry);
  }
  std::stable_sort(by_id.begin(), by_id.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [id, entry] : by_id) {
    const Value* special = entry->find("special");
    const bool said = special != nullptr && special->is_boolean() && special->boolean();
    added.push_back({token_with(*entry, said || is_named(content_of(entry))), std::nullopt, true});
  }
}

template <typename IsSpecial>
void add_listed_tokens(const json::Object& listed, const IsSpecial& is_special, std::vector<AddedEntry>& added) {
  std::vector<AddedEntry> found;
  for (const auto& [content, id] : listed.members()) {
    if (!id.is_integer()) continue;
    AddedEntry entry;
    entry.token.content = content;
    entry.id = id.integer();
    entry.configured = true;
    entry.token.special = is_special(content);
    entry.token.normalized = !entry.token.special;
    found.push_back(std::move(entry));
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return *a.id < *b.id; });
  added.insert(added.end(), found.begin(), found.end());
}

// Tokens that transformers adds to those of tokenizer.json, in its order.
std::vector<AddedEntry> added_tokens(const std::string& directory, const json::Object& config, const NamedTexts& tokens,
                                     const std::vector<std::string>& extra) {
  std::vector<std::string> named, special;
  for (const auto& [name, text] : tokens) named.push_back(text);
  special = named;
  special.insert(special.end(), extra.begin(), extra.end());
  const auto within = [](const std::vector<std::string>& texts) {
    return [&texts](const std::string& text) { return std::find(texts.begin(), texts.end(), text) != texts.end(); };
  };
  std::vector<AddedEntry> added;
  if (const Value* entries = config.find("added_tokens_decoder")) {
    add_decoder_tokens(in_directory(directory, "tokenizer_config.json"), *entries, within(named), added);
  } else {
    add_listed_tokens(read_json(in_directory(directory, "added_tokens.json")), within(special), added);
  }
  for (const std::string& content : special) {
    AddedEntry entry{{content}, std::nullopt, false};
    entry.token.special = true;
    entry.token.normalized = false;
    added.push_back(std::move(entry));
  }
  return added;
}

}  // namespace

TextFiles read_text_files(const std::string& directory) {
  TextFiles files;
  json::Object config = read_json(in_directory(directory, "tokenizer_config.json"));
  if (config.find("added_tokens_decoder") == nullptr) {  // as transformers, which reads the older file in its absence
    const json::Object older = read_json(in_directory(directory, "special_tokens_map.json"));
    for (const auto& [name, value] : older.members()) config.set(name, value);
  }
  std::string processor_source;
  files.chat_templates = tokenizer_templates(directory, config, files.templates_from);
  NamedTexts processor = processor_templates(directory, processor_source);
  if (files.chat_templates.empty()) {
    files.chat_templates = std::move(processor);
    files.templates_from = processor_source;
  }
  std::vector<std::string> extra;
  files.special_tokens = special_tokens(config, extra);
  files.added = added_tokens(directory, config, files.special_tokens, extra);
  if (const Value* control = config.find("chat_control_tokens"); control != nullptr && control->is_array()) {
    files.control_tokens.emplace();
    for (const Value& token : control->array()) {
      if (token.is_string()) files.control_tokens->push_back(token.string());
    }
  }
  const Value* split = config.find("split_special_tokens");
  files.special_as_text = split != nullptr && split->is_boolean() && split->boolean();
  return files;
}

}  // namespace l4::text
