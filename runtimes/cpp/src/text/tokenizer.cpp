#include "text/tokenizer.hpp"

#include <algorithm>
#include <unordered_set>

#include "base/error.hpp"
#include "base/utf8.hpp"
#include "storage/files.hpp"
#include "text/characters.hpp"
#include "text/refusal.hpp"

namespace l4::text {

namespace {

constexpr std::size_t kMostCharacters = 64 << 20;  // ten times what Llama 4 Scout's context holds of English, or more
constexpr std::size_t kMostIds = 64 << 20;

void check_text(std::string_view text) {
  const std::size_t bad = utf8::first_invalid(text);
  if (bad != utf8::npos) throw bad_input("text: byte " + std::to_string(bad) + " is not UTF-8: give valid Unicode");
  const auto begins_character = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; };
  if (text.size() <= kMostCharacters) return;
  const auto count = static_cast<std::size_t>(std::count_if(text.begin(), text.end(), begins_character));
  if (count > kMostCharacters) {
    throw bad_input("text: " + std::to_string(count) + " characters, at most " + std::to_string(kMostCharacters) +
                    " are encoded: give it in pieces");
  }
}

// The tokens of the files beside tokenizer.json that are to be added, in order.
std::vector<AddedToken> fresh_tokens(const std::vector<AddedEntry>& entries, const AddedVocabulary& added) {
  std::unordered_set<std::int64_t> ids;
  for (const AddedVocabulary::Entry& entry : added.entries()) ids.insert(entry.id);
  std::unordered_set<std::string> contents;
  std::vector<AddedToken> fresh;
  for (const AddedEntry& entry : entries) {
    const AddedVocabulary::Entry* present = added.find(entry.token.content);
    const bool known = entry.configured ? present != nullptr && present->token == entry.token
                                        : present != nullptr || contents.count(entry.token.content) != 0;
    if (known || (entry.id && ids.count(*entry.id) != 0)) continue;
    fresh.push_back(entry.token);
    contents.insert(entry.token.content);
  }
  return fresh;
}

bool is_blank(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const char32_t point = utf8::next(text, at);
    const bool separator = point >= 0x1C && point <= 0x1F;  // white space to Python alone
    if (!separator && (class_of(point) & kSpace) == 0) return false;
  }
  return true;
}

// Added tokens that are to be text like special ones: those that a file names, or else those that a template writes.
std::vector<std::string> control_tokens(const TextFiles& files, const AddedVocabulary& added) {
  if (files.control_tokens) return *files.control_tokens;
  std::vector<std::string> written;
  for (const AddedVocabulary::Entry& entry : added.entries()) {
    const std::string& content = entry.token.content;
    if (entry.token.special) continue;  // it is text anyway
    const bool is_written = std::any_of(files.chat_templates.begin(), files.chat_templates.end(), [&](const auto& one) {
      return one.second.find(content) != std::string::npos;
    });
    if (is_written && !is_blank(content)) written.push_back(content);
  }
  return written;
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::open(const std::string& directory, const TextFiles& files) {
  const std::string path = storage::in_directory(directory, "tokenizer.json");
  if (!storage::regular_size(path)) {
    throw bad_input(directory + ": has no tokenizer.json, which text and stop strings need");
  }
  return std::make_shared<const Tokenizer>(read_tokenizer_file(path), files);
}

Tokenizer::Tokenizer(TokenizerFile file, const TextFiles& files)
    : model_(std::move(file.model)),
      before_(std::move(file.before)),
      after_(std::move(file.after)),
      pad_token_(std::move(file.pad_token)),
      special_as_text_(files.special_as_text) {
  try {
    added_.add(file.added, model_.vocabulary);
    added_.add(fresh_tokens(files.added, added_), model_.vocabulary);
  } catch (const Refusal& refusal) {
    throw bad_input(file.path + ": " + refusal.reason);
  }
  for (const AddedVocabulary::Entry& entry : added_.entries()) {
    const std::uint8_t flags = (entry.was_special ? kSkipped : 0) | (entry.token.special ? kTextless : 0);
    if (flags == 0) continue;
    flags_.resize(model_.vocabulary.ids());
    flags_[static_cast<std::size_t>(entry.id)] = flags;
  }
  spelled_ = SpelledTokens(added_.entries(), control_tokens(files, added_));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special, bool special_as_text) const {
  check_text(text);
  std::vector<std::int32_t> ids;
  ids.reserve(text.size() / 3 + before_.size() + after_.size());
  if (add_special) ids = before_;
  const std::size_t from = ids.size();
  encode_to(text, !special_as_text, ids);
  if (special_as_text) check_spelled(text, ids, from);
  if (add_special) ids.insert(ids.end(), after_.begin(), after_.end());
  return ids;
}

void Tokenizer::encode_to(std::string_view text, bool find_added, std::vector<std::int32_t>& ids) const {
  WordEncoder words(model_, ids, text.size());
  if (!find_added) return words.encode(text);
  for (const AddedVocabulary::Part& part : added_.cut(text, special_as_text_)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      words.encode(part.text);
    }
  }
}

void Tokenizer::check_spelled(std::string_view text, const std::vector<std::int32_t>& ids, std::size_t from) const {
  for (const std::int32_t id : spelled_.ids_in(text)) {
    if (std::find(ids.begin() + static_cast<std::ptrdiff_t>(from), ids.end(), id) == ids.end()) continue;
    throw bad_input("text: the tokenizer makes the special token " + in_quotes(model_.vocabulary.spelling(id)) +
                    " of ordinary text: leave it out");
  }
}

std::vector<std::int32_t> Tokenizer::encode_marked(std::string_view prompt) const {
  check_text(prompt);
  std::vector<std::int32_t> ids, line_end, piece;
  encode_to("\n", true, line_end);
  const std::vector<std::string_view> parts = spelled_.cut(prompt);
  for (std::size_t index = 0; index < parts.size(); ++index) {
    if (parts[index].empty()) continue;
    const bool as_text = index % 2 == 1;
    piece.clear();
    std::size_t from = 0;
    if (index > 0) {  // after a line end, as the Python runtime does: it tells what a text within another one gives
      encode_to("\n" + std::string(parts[index]), !as_text, piece);
      const bool begins_so =
          piece.size() >= line_end.size() && std::equal(line_end.begin(), line_end.end(), piece.begin());
      from = begins_so ? line_end.size() : 0;
      if (!begins_so) piece.clear();
    }
    if (piece.empty()) encode_to(parts[index], !as_text, piece);
    if (as_text) check_spelled(parts[index], piece, from);
    ids.insert(ids.end(), piece.begin() + static_cast<std::ptrdiff_t>(from), piece.end());
  }
  return ids;
}

std::string Tokenizer::decode(const std::int32_t* ids, std::size_t count, bool skip_special) const {
  if (count > kMostIds) {
    throw bad_input("token ids: " + std::to_string(count) + ", at most " + std::to_string(kMostIds) +
                    " are decoded: give them in pieces");
  }
  std::string bytes;
  bytes.reserve(4 * count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t id = ids[i];
    if (id < 0) throw bad_input("token ids: one is negative or above 2^32 - 1: give ids of the vocabulary");
    if (model_.vocabulary.has(id) && !(skip_special && has_flag(id, kSkipped))) bytes += model_.vocabulary.bytes(id);
  }
  return utf8::is_valid(bytes) ? bytes : utf8::repaired(bytes);
}

std::optional<std::int32_t> Tokenizer::token_id(std::string_view token) const {
  if (!utf8::is_valid(token)) return std::nullopt;
  if (const AddedVocabulary::Entry* entry = added_.find(token)) return entry->id;
  const std::int32_t id = model_.vocabulary.find(token);
  return id < 0 ? std::nullopt : std::optional(id);
}

std::optional<std::string> Tokenizer::token(std::int32_t id) const {
  if (!model_.vocabulary.has(id)) return std::nullopt;
  return model_.vocabulary.spelling(id);
}

bool Tokenizer::has_text(std::int32_t id, bool skip_special) const {
  if (id < 0) {
    throw bad_input("token id " + std::to_string(id) + " is negative or above 2^32 - 1: give ids of the vocabulary");
  }
  return model_.vocabulary.has(id) && !model_.vocabulary.bytes(id).empty() &&
         !(skip_special && has_flag(id, kTextless));
}

}  // namespace l4::text
