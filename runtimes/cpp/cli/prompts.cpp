#include "prompts.hpp"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "base/error.hpp"
#include "base/json.hpp"
#include "base/utf8.hpp"
#include "storage/files.hpp"

namespace l4run {

namespace json = l4::json;

namespace {

constexpr std::string_view kPlaceholder = "<|image|>";
constexpr std::uint64_t kMostPromptBytes = 64 << 20;

l4export::Ids parse_ids(const std::string& text) {
  const auto refuse = [&] {
    return l4::bad_input("--token-ids " + l4::in_quotes(text) +
                         ": write whole numbers with commas between them, as in 1,2,3");
  };
  const auto skip_space = [&](const char* at) {
    while (*at == ' ' || (*at >= '\t' && *at <= '\r')) ++at;
    return at;
  };
  l4export::Ids ids;
  const char *at = skip_space(text.c_str()), *end = text.c_str() + text.size();
  while (true) {
    std::int32_t id = 0;
    const auto [stopped, error] = std::from_chars(at, end, id);
    if (error != std::errc()) throw refuse();
    ids.push_back(id);
    at = skip_space(stopped);
    if (at == end) return ids;
    if (*at != ',') throw refuse();
    at = skip_space(at + 1);
  }
}

l4export::Ids ids_of(const json::Value& list, const std::string& where) {
  l4export::Ids ids;
  for (const json::Value& item : list.is_array() ? list.array() : json::Array{nullptr}) {
    if (!item.is_integer() || item.integer() != static_cast<std::int32_t>(item.integer())) {
      throw l4::bad_input(where + ": token_ids are no list of whole numbers");
    }
    ids.push_back(static_cast<std::int32_t>(item.integer()));
  }
  return ids;
}

// Makes prompts of what is said in text.
class Encoder {
 public:
  Encoder(const Options& options, const l4export::Tokenizer* tokenizer) : options_(options), tokenizer_(tokenizer) {}

  Encoded text(const std::string& prompt, const std::vector<std::string>& images) const {
    const std::size_t places = options_.special_tokens_as_text ? 0 : placeholders(prompt);
    if (!images.empty() && places != 0 && places != images.size()) {
      throw l4::bad_input("--prompt: has " + std::to_string(places) + " placeholders <|image|> for " +
                          std::to_string(images.size()) + " images; give --image for each");
    }
    Encoded encoded;
    for (const std::string& image : images) encoded.pictures.push_back(read_picture(image));
    const std::size_t before = places != 0 ? 0 : images.size();
    const l4_tokenizer_info info = tokenizer().info();
    if (options_.raw || !info.has_chat_template) {
      std::string marked;
      for (std::size_t i = 0; i < before; ++i) marked += kPlaceholder;
      encoded.ids = tokenizer().encode(marked + prompt, L4_ADD_SPECIAL_TOKENS | flags());
      return encoded;
    }
    if (!info.writes_user_text) throw l4::bad_input("chat template: it does not write what a user says; give --raw");
    json::Array parts;
    for (std::size_t i = 0; i < before; ++i) parts.push_back(part("image"));
    json::Object message;
    message.add("role", "user");
    if (parts.empty()) {
      message.add("content", prompt);
    } else {
      parts.push_back(part("text", &prompt));
      message.add("content", std::move(parts));
    }
    encoded.ids = chat(json::Array{json::Value(std::move(message))});
    return encoded;
  }

  // A list of messages, or an object that has one; paths of images are relative to `directory`.
  Encoded messages(const json::Value& given, const std::filesystem::path& directory, const std::string& where) const {
    const json::Value* list = given.is_array() ? &given : given.find("messages");
    if (list == nullptr || !list->is_array()) {
      throw l4::bad_input(where + ": not a JSON list of messages, such as [{\"role\": ..., \"content\": ...}]");
    }
    Encoded encoded;
    json::Array messages;
    for (const json::Value& message : list->array()) {
      messages.push_back(without_files(message, directory, encoded.pictures));
    }
    json::Object document;
    document.add("messages", std::move(messages));
    if (given.is_object()) {
      for (const auto& [name, value] : given.object().members()) document.add(name, value);
    }
    encoded.ids = chat(std::move(document));
    return encoded;
  }

 private:
  static std::size_t placeholders(const std::string& text) {
    std::size_t count = 0;
    for (std::size_t at = text.find(kPlaceholder); at != std::string::npos; at = text.find(kPlaceholder, at + 1)) {
      ++count;
    }
    return count;
  }

  static json::Value part(const char* type, const std::string* text = nullptr) {
    json::Object members;
    members.add("type", type);
    if (text != nullptr) members.add("text", *text);
    return members;
  }

  // A message whose images are placeholders; the files that they name are read.
  static json::Value without_files(const json::Value& message, const std::filesystem::path& directory,
                                   std::vector<PictureFile>& pictures) {
    const json::Value* content = message.find("content");
    if (content == nullptr || !content->is_array()) return message;
    json::Array parts;
    for (const json::Value& each : content->array()) {
      const json::Value* type = each.find("type");
      const json::Value* path = each.find("path") != nullptr ? each.find("path") : each.find("image");
      if (type == nullptr || !type->is_string() || type->string() != "image" || path == nullptr || !path->is_string()) {
        parts.push_back(each);
        continue;
      }
      pictures.push_back(read_picture((directory / path->string()).string()));
      parts.push_back(part("image"));
    }
    json::Object changed;
    for (const auto& [name, value] : message.object().members()) {
      changed.add(name, name == "content" ? json::Value(parts) : value);
    }
    return changed;
  }

  l4export::Ids chat(json::Value given) const {
    json::Object document;
    if (given.is_array()) document.add("messages", given);
    return tokenizer().encode_chat(json::dump(given.is_array() ? json::Value(document) : given), flags());
  }

  std::uint32_t flags() const { return options_.special_tokens_as_text ? L4_SPECIAL_TOKENS_AS_TEXT : 0; }

  const l4export::Tokenizer& tokenizer() const {
    if (tokenizer_ != nullptr) return *tokenizer_;
    throw l4::bad_input(options_.engine +
                        ": has no tokenizer.json; give --token-ids, or put one into the checkpoint, as "
                        "transformers' AutoTokenizer writes with save_pretrained, and build again");
  }

  const Options& options_;
  const l4export::Tokenizer* tokenizer_;
};

// A file of text, whose lines are the prompts of a batch.
std::vector<Encoded> read_batch(const Encoder& encoder, const std::string& path) {
  const std::string text = l4::storage::read_small(path, kMostPromptBytes, "give a shorter one");
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  std::vector<Encoded> prompts;
  std::size_t number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    const std::string where = path + ": line " + std::to_string(++number);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const json::Value value = json::parse(line, where);
    const json::Value *prompt = value.find("prompt"), *ids = value.find("token_ids"),
                      *messages = value.find("messages");
    if ((prompt != nullptr) + (ids != nullptr) + (messages != nullptr) != 1 ||
        (prompt != nullptr && !prompt->is_string())) {
      throw l4::bad_input(where + ": give one of {\"prompt\": TEXT}, {\"token_ids\": [...]} and {\"messages\": [...]}");
    }
    if (prompt != nullptr) {
      prompts.push_back(encoder.text(prompt->string(), {}));
    } else if (ids != nullptr) {
      prompts.push_back({ids_of(*ids, where), {}});
    } else {
      prompts.push_back(encoder.messages(value, directory, where));
    }
    if (prompts.back().ids.empty()) throw l4::bad_input(where + ": the prompt is empty: give at least one token");
  }
  if (prompts.empty()) throw l4::bad_input(path + ": has no prompt; give one a line");
  return prompts;
}

}  // namespace

std::vector<Encoded> read_prompts(const Options& options, const l4export::Tokenizer* tokenizer) {
  const Encoder encoder(options, tokenizer);
  std::vector<Encoded> prompts;
  if (options.batch) {
    prompts = read_batch(encoder, *options.batch);
  } else if (options.token_ids) {
    prompts.push_back({parse_ids(*options.token_ids), {}});
  } else if (options.chat) {
    const std::string text = l4::storage::read_small(*options.chat, kMostPromptBytes, "give a JSON file of messages");
    const auto directory = std::filesystem::path(*options.chat).parent_path();
    prompts.push_back(encoder.messages(json::parse(text, *options.chat), directory, *options.chat));
  } else {
    prompts.push_back(encoder.text(*options.prompt, options.images));
  }
  return prompts;
}

}  // namespace l4run
