#include "text/spelled_tokens.hpp"

#include <algorithm>
#include <unordered_set>
#include <utility>

namespace l4::text {

namespace {

constexpr std::string_view kStart = "\xF3\xB0\x80\x80", kEnd = "\xF3\xB0\x80\x81";  // U+F0000 and U+F0001

bool is_mark(std::string_view text, std::size_t at) {
  const std::string_view four = text.substr(at, kStart.size());
  return four == kStart || four == kEnd;
}

}  // namespace

SpelledTokens::SpelledTokens(const std::vector<AddedVocabulary::Entry>& added,
                             const std::vector<std::string>& control_tokens) {
  const std::unordered_set<std::string> control(control_tokens.begin(), control_tokens.end());
  std::vector<std::string> contents;
  for (const AddedVocabulary::Entry& entry : added) {
    if (!entry.token.special && control.count(entry.token.content) == 0) continue;
    contents.push_back(entry.token.content);
    ids_.push_back(entry.id);
  }
  finder_ = TokenFinder(std::move(contents));
}

json::Value SpelledTokens::mark(const json::Value& value) const {
  if (value.is_string()) return mark(std::string_view(value.string()));
  if (value.is_array()) {
    json::Array items;
    for (const json::Value& item : value.array()) items.push_back(mark(item));
    return items;
  }
  if (!value.is_object()) return value;
  json::Object members;
  for (const auto& [key, item] : value.object().members()) members.add(key, mark(item));
  return members;
}

std::string SpelledTokens::mark(std::string_view text) const {
  std::string plain;
  for (std::size_t at = 0; at < text.size();) {
    if (is_mark(text, at)) {
      at += kStart.size();
    } else {
      plain.push_back(text[at++]);
    }
  }
  std::string marked;
  std::size_t done = 0;
  for (TokenFinder::Found found; finder_.find(plain, done, found); done = found.at + found.length) {
    marked.append(plain, done, found.at - done).append(kStart).append(plain, found.at, found.length).append(kEnd);
  }
  return marked.append(plain, done, std::string::npos);
}

std::vector<std::string_view> SpelledTokens::cut(std::string_view prompt) const {
  std::vector<std::string_view> parts;
  std::size_t done = 0;
  for (std::size_t at = 0; at < prompt.size();) {
    if (!is_mark(prompt, at)) {
      ++at;
      continue;
    }
    const std::size_t token = at + kStart.size();
    TokenFinder::Found found{token, 0, 0};
    const bool marked = prompt[at + 3] == kStart[3] && finder_.longest_at(prompt, token, found, [&](std::size_t end) {
      return prompt.substr(end, kEnd.size()) == kEnd;
    });
    parts.push_back(prompt.substr(done, at - done));
    parts.push_back(prompt.substr(token, marked ? found.length : 0));
    at = done = token + (marked ? found.length + kEnd.size() : 0);
  }
  parts.push_back(prompt.substr(done));
  return parts;
}

std::vector<std::int32_t> SpelledTokens::ids_in(std::string_view text) const {
  std::vector<std::int32_t> ids;
  std::size_t from = 0;
  for (TokenFinder::Found found; finder_.find(text, from, found); from = found.at + found.length) {
    ids.push_back(ids_[static_cast<std::size_t>(found.index)]);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace l4::text
