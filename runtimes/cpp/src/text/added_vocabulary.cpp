#include "text/added_vocabulary.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/utf8.hpp"
#include "text/characters.hpp"
#include "text/refusal.hpp"

namespace l4::text {

namespace {

// The first byte of the character that ends at `end`, which is not 0.
std::size_t before(std::string_view text, std::size_t end) {
  do --end;
  while ((static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool is(std::uint8_t bits, std::string_view text, std::size_t at) {
  return (class_of(utf8::next(text, at)) & bits) != 0;
}

bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) {
  return (begin == 0 || !is(kWord, text, before(text, begin))) && (end == text.size() || !is(kWord, text, end));
}

std::size_t space_before(std::string_view text, std::size_t begin) {
  while (begin > 0 && is(kSpace, text, before(text, begin))) begin = before(text, begin);
  return begin;
}

std::size_t behind_space(std::string_view text, std::size_t end) {
  while (end < text.size() && is(kSpace, text, end)) utf8::next(text, end);
  return end;
}

}  // namespace

void AddedVocabulary::add(const std::vector<AddedToken>& tokens, Vocabulary& vocabulary) {
  auto next = static_cast<std::int64_t>(vocabulary.size());
  for (const Entry& entry : entries_) next = std::max(next, static_cast<std::int64_t>(entry.id) + 1);
  for (const AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    if (token.content.size() > kLongest) {
      throw unsupported("an added token of " + std::to_string(token.content.size()) + " bytes (at most " +
                        std::to_string(kLongest) + " are taken)");
    }
    const auto [known, is_new] = by_content_.try_emplace(token.content, entries_.size());
    if (!is_new) {
      Entry& entry = entries_[known->second];
      entry.token = token;
      entry.was_special |= token.special;
      continue;
    }
    std::int32_t id = vocabulary.find(token.content);
    if (id < 0) {
      vocabulary.add(token.content, next);
      id = static_cast<std::int32_t>(next++);
    }
    entries_.push_back({token, id, token.special});
  }
  std::array<std::vector<std::string>, 2> contents;
  for (Pass& pass : passes_) pass.entries.clear();
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const AddedToken& token = entries_[i].token;
    contents[token.normalized].push_back(token.content);
    passes_[token.normalized].entries.push_back(i);
  }
  for (std::size_t i = 0; i < passes_.size(); ++i) passes_[i].finder = TokenFinder(std::move(contents[i]));
}

const AddedVocabulary::Entry* AddedVocabulary::find(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found == by_content_.end() ? nullptr : &entries_[found->second];
}

std::vector<AddedVocabulary::Part> AddedVocabulary::cut(std::string_view text, bool special_as_text) const {
  std::vector<Part> first, parts;
  cut_once(passes_[0], text, special_as_text, first);
  if (passes_[1].finder.empty()) return first;
  for (const Part& part : first) {
    if (part.id >= 0) {
      parts.push_back(part);
    } else {
      cut_once(passes_[1], part.text, special_as_text, parts);
    }
  }
  return parts;
}

// As the library does it, also where white space belongs to two tokens: what a token has stripped on its right may
// begin the next one.
void AddedVocabulary::cut_once(const Pass& pass, std::string_view text, bool special_as_text,
                               std::vector<Part>& parts) const {
  std::size_t done = 0, from = 0;
  for (TokenFinder::Found found; pass.finder.find(text, from, found);) {
    from = found.at + found.length;
    const Entry& entry = entries_[pass.entries[static_cast<std::size_t>(found.index)]];
    std::size_t begin = found.at, end = from;
    if (special_as_text && entry.was_special) continue;
    if (entry.token.single_word && !stands_alone(text, begin, end)) continue;
    if (entry.token.lstrip) begin = std::max(space_before(text, begin), done);
    if (entry.token.rstrip) end = behind_space(text, end);
    if (begin > end) throw bad_input("text: an added token that takes white space overlaps another one; leave one out");
    if (done < begin) parts.push_back({-1, text.substr(done, begin - done)});
    if (begin < end) parts.push_back({entry.id, text.substr(begin, end - begin)});
    done = end;
  }
  if (done < text.size()) parts.push_back({-1, text.substr(done)});
}

}  // namespace l4::text
