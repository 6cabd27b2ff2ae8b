#include "text/bpe.hpp"

#include <algorithm>

namespace l4::text {

namespace {

// Few enough to stay in the processor's fast memory, and none to speak of for a short text.
std::size_t slots_for(std::size_t size) {
  std::size_t slots = 32;
  while (slots < size / 8 && slots < 1 << 13) slots *= 2;
  return slots;
}

}  // namespace

Merges::Merges(const std::vector<Merge>& merges) : table_(merges.size()) {
  for (const Merge& merge : merges) {
    const auto is_it = [&](const Merge& one) { return one.left == merge.left && one.right == merge.right; };
    Merge* known = table_.add(hash(merge.left, merge.right), merge, is_it);
    if (known != nullptr) *known = merge;
  }
}

WordEncoder::WordEncoder(const Bpe& model, std::vector<std::int32_t>& ids, std::size_t size)
    : model_(model), ids_(ids), seen_(slots_for(size)) {}

void WordEncoder::encode(std::string_view part) {
  for (std::size_t at = 0; at < part.size();) {
    const std::size_t end = model_.splitter(part, at);
    encode_word(part.substr(at, end - at));
    at = end;
  }
}

void WordEncoder::encode_word(std::string_view word) {
  const std::uint64_t hash = hash_of(word);
  Seen& seen = seen_[hash & (seen_.size() - 1)];
  if (seen.word == word) {
    for (std::size_t i = 0; i < seen.count; ++i) ids_.push_back(ids_[seen.first + i]);
    return;
  }
  const std::size_t first = ids_.size();
  const std::int32_t whole = model_.whole_words_first ? model_.vocabulary.find_bytes(word, hash) : -1;
  if (whole >= 0) {
    ids_.push_back(whole);
  } else {
    merge(word);
  }
  seen = {word, first, ids_.size() - first};
}

void WordEncoder::offer(std::int32_t at) {
  const std::int32_t next = symbols_[at].next;
  if (next < 0) return;
  const Merge* merge = model_.merges.find(symbols_[at].id, symbols_[next].id);
  if (merge != nullptr) candidates_.push_back({merge->rank_plus_1, at, merge});
}

void WordEncoder::merge(std::string_view word) {
  symbols_.clear();
  candidates_.clear();
  for (const char byte : word) {
    const std::int32_t id = model_.bytes[static_cast<unsigned char>(byte)];
    const auto index = static_cast<std::int32_t>(symbols_.size());
    if (id >= 0) symbols_.push_back({id, index - 1, index + 1});
  }
  if (symbols_.empty()) return;
  symbols_.back().next = -1;
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  const auto offer_to_heap = [&](std::int32_t at) {
    const std::size_t before = candidates_.size();
    offer(at);
    if (candidates_.size() > before) std::push_heap(candidates_.begin(), candidates_.end(), later);
  };
  for (std::int32_t at = 0; at < static_cast<std::int32_t>(symbols_.size()); ++at) offer(at);
  std::make_heap(candidates_.begin(), candidates_.end(), later);
  while (!candidates_.empty()) {
    std::pop_heap(candidates_.begin(), candidates_.end(), later);
    const auto [rank, at, merge] = candidates_.back();
    candidates_.pop_back();
    Symbol& left = symbols_[at];
    if (left.id != merge->left || left.next < 0) continue;  // it has been merged with another one, and so here:
    Symbol& right = symbols_[left.next];
    if (right.id != merge->right) continue;
    left.id = merge->id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols_[left.next].previous = at;
    if (left.previous >= 0) offer_to_heap(left.previous);
    offer_to_heap(at);
  }
  for (std::int32_t at = 0; at >= 0; at = symbols_[at].next) ids_.push_back(symbols_[at].id);
}

}  // namespace l4::text
