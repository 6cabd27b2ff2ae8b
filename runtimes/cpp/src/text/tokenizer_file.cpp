#include "text/tokenizer_file.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "base/json.hpp"
#include "storage/files.hpp"
#include "text/model_reader.hpp"
#include "text/refusal.hpp"

namespace l4::text {

namespace {

using json::Value;

constexpr std::uint64_t kMostBytes = 128u << 20;  // of the file; Llama 4's has 28 MB
constexpr std::size_t kMostSettings = 100'000;    // values of a part that is no list of tokens

const std::string& text_of(const Value* value, const char* name) {
  if (value == nullptr || !value->is_string()) throw damaged(std::string(name) + " is no text");
  return value->string();
}

bool flag_of(const Value& value, const char* name, bool otherwise) {
  const Value* found = value.find(name);
  if (found == nullptr) return otherwise;
  if (!found->is_boolean()) throw damaged(std::string(name) + " is neither true nor false");
  return found->boolean();
}

// The steps of a part such as "pre_tokenizer"; those of sequences within it stand in `list`.
void add_steps(const Value& part, const char* name, const char* list, std::vector<const Value*>& steps) {
  if (part.is_null()) return;
  if (text_of(part.find("type"), "the type of a step") != "Sequence") {
    steps.push_back(&part);
    return;
  }
  const Value* items = part.find(list);
  if (items == nullptr || !items->is_array()) throw damaged(std::string(name) + " has a sequence without steps");
  for (const Value& item : items->array()) {
    if (!item.is_object()) throw damaged(std::string(name) + " has a step that is no object");
    add_steps(item, name, list, steps);
  }
}

std::vector<const Value*> steps_of(const Value& part, const char* name, const char* list) {
  if (!part.is_null() && !part.is_object()) throw damaged(std::string(name) + " is no object");
  std::vector<const Value*> steps;
  add_steps(part, name, list, steps);
  return steps;
}

[[noreturn]] void refuse_step(const char* name, const Value& step) {
  throw unsupported(std::string("the ") + name + " " + in_quotes(step.find("type")->string()));
}

bool is_a(const Value& step, std::string_view type) { return step.find("type")->string() == type; }

Splitter read_split(const Value& step) {
  const Value* pattern = step.find("pattern");
  const Value* expression = pattern != nullptr ? pattern->find("Regex") : nullptr;
  if (flag_of(step, "invert", false) || text_of(step.find("behavior"), "behavior") != "Isolated" ||
      expression == nullptr) {
    throw unsupported("a Split that does not isolate what a regular expression matches");
  }
  const Splitter splitter = splitter_of(text_of(expression, "the pattern of a Split"));
  if (splitter == nullptr) {
    throw unsupported("the Split pattern " + in_quotes(expression->string()) +
                      ", neither that of Llama 3 nor of Llama 4");
  }
  return splitter;
}

Splitter read_pre_tokenizer(const Value& part) {
  Splitter splitter = nullptr;
  const std::vector<const Value*> steps = steps_of(part, "pre_tokenizer", "pretokenizers");
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (is_a(*steps[i], "Split") && i == 0 && steps.size() == 2) {
      splitter = read_split(*steps[i]);
    } else if (is_a(*steps[i], "ByteLevel") && i + 1 == steps.size()) {
      if (flag_of(*steps[i], "add_prefix_space", true)) {
        throw unsupported("a pre_tokenizer that adds a space before a text");
      }
      if (flag_of(*steps[i], "use_regex", true)) {
        if (splitter != nullptr) throw unsupported("a pre_tokenizer that splits by two patterns");
        return split_as_gpt2;
      }
      return splitter != nullptr ? splitter : split_nowhere;
    } else {
      refuse_step("pre_tokenizer", *steps[i]);
    }
  }
  throw unsupported("a tokenizer that is not byte-level (its pre_tokenizer has no ByteLevel)");
}

void check_decoder(const Value& part) {
  const std::vector<const Value*> steps = steps_of(part, "decoder", "decoders");
  for (const Value* step : steps) {
    if (!is_a(*step, "ByteLevel")) refuse_step("decoder", *step);
  }
  if (steps.size() != 1) throw unsupported("a decoder that is not ByteLevel alone");
}

std::vector<std::int32_t> special_ids(const Value& step, const std::string& name) {
  const Value* tokens = step.find("special_tokens");
  const Value* token = tokens != nullptr ? tokens->find(name) : nullptr;
  const Value* listed = token != nullptr ? token->find("ids") : nullptr;
  if (listed == nullptr || !listed->is_array()) throw damaged("post_processor has no ids for " + in_quotes(name));
  std::vector<std::int32_t> ids;
  for (const Value& id : listed->array()) {
    if (!id.is_integer() || id.integer() < 0 || id.integer() > INT32_MAX) {
      throw damaged("post_processor has ids for " + in_quotes(name) + " that are none");
    }
    ids.push_back(static_cast<std::int32_t>(id.integer()));
  }
  return ids;
}

// Put what a template has before and behind a text around what is there.
void read_template(const Value& step, TokenizerFile& file) {
  const Value* single = step.find("single");
  if (single == nullptr || !single->is_array()) throw damaged("post_processor has no list \"single\"");
  std::vector<std::int32_t> before, after;
  std::size_t texts = 0;
  for (const Value& piece : single->array()) {
    if (const Value* sequence = piece.find("Sequence")) {
      if (text_of(sequence->find("id"), "a sequence of the post_processor") != "A") {
        throw damaged("post_processor has a second text");
      }
      ++texts;
    } else {
      const Value* special = piece.find("SpecialToken");
      const std::string& name =
          text_of(special != nullptr ? special->find("id") : nullptr, "a piece of the post_processor");
      const std::vector<std::int32_t> ids = special_ids(step, name);
      std::vector<std::int32_t>& side = texts == 0 ? before : after;
      side.insert(side.end(), ids.begin(), ids.end());
    }
  }
  if (texts != 1) throw unsupported("a post_processor that has the text " + std::to_string(texts) + " times");
  file.before.insert(file.before.begin(), before.begin(), before.end());
  file.after.insert(file.after.end(), after.begin(), after.end());
}

void read_post_processor(const Value& part, TokenizerFile& file) {
  for (const Value* step : steps_of(part, "post_processor", "processors")) {
    if (is_a(*step, "ByteLevel")) continue;  // it is about offsets, which nobody asks for
    if (!is_a(*step, "TemplateProcessing")) refuse_step("post_processor", *step);
    read_template(*step, file);
  }
}

AddedToken read_added_token(json::Reader& reader) {
  AddedToken token;
  int seen = 0;
  reader.object([&](std::string_view key) {
    const std::pair<const char*, bool*> flags[] = {{"single_word", &token.single_word},
                                                   {"lstrip", &token.lstrip},
                                                   {"rstrip", &token.rstrip},
                                                   {"normalized", &token.normalized},
                                                   {"special", &token.special}};
    for (const auto& [name, flag] : flags) {
      if (key == name) return ++seen, void(*flag = reader.boolean());
    }
    if (key == "content") return ++seen, void(token.content = reader.string());
    if (key == "id") {
      return ++seen, void(reader.integer());  // ids are given as the library does: by the vocabulary, or the next
    }
    reader.skip();
  });
  if (seen != 7) throw damaged("an added token lacks its content, its id or one of its flags, or has one twice");
  return token;
}

TokenizerFile read(std::string_view text, const std::string& path) {
  TokenizerFile file;
  file.path = path;
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  json::Reader reader(text, path, {kMostBytes});
  json::Object settings;
  std::vector<std::string> seen;
  reader.object([&](std::string_view key) {
    if (std::find(seen.begin(), seen.end(), key) != seen.end()) throw damaged("it has " + in_quotes(key) + " twice");
    if (seen.size() == 64) throw damaged("it has too many parts");
    seen.emplace_back(key);
    if (key == "model") return void(file.model = read_model(reader));
    if (key == "added_tokens") return reader.array([&] { file.added.push_back(read_added_token(reader)); });
    settings.add(std::string(key), json::parse(reader.skip(), path, {kMostSettings}));
  });
  reader.end();
  const auto part = [&](const char* name) {
    const Value* found = settings.find(name);
    return found != nullptr ? *found : Value();
  };
  if (std::find(seen.begin(), seen.end(), "model") == seen.end()) throw damaged("it has no model");
  if (const Value* version = settings.find("version"); version != nullptr && text_of(version, "version") != "1.0") {
    throw unsupported("the version " + in_quotes(version->string()) + " of tokenizer.json");
  }
  if (const Value normalizer = part("normalizer"); !normalizer.is_null()) {
    const Value* type = normalizer.find("type");
    throw unsupported("the normalizer " + in_quotes(type != nullptr && type->is_string() ? type->string() : ""));
  }
  file.model.splitter = read_pre_tokenizer(part("pre_tokenizer"));
  check_decoder(part("decoder"));
  read_post_processor(part("post_processor"), file);
  if (const Value padding = part("padding"); !padding.is_null()) {
    file.pad_token = text_of(padding.find("pad_token"), "the pad_token of padding");
  }
  return file;
}

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view text, const std::string& path) {
  try {
    return read(text, path);
  } catch (const Refusal& refusal) {
    throw bad_input(path + ": " + refusal.reason);
  }
}

TokenizerFile read_tokenizer_file(const std::string& path) {
  return parse_tokenizer_file(storage::read_small(path, kMostBytes, "restore or remove it"), path);
}

}  // namespace l4::text
