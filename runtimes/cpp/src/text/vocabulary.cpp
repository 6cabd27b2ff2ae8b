#include "text/vocabulary.hpp"

#include "base/error.hpp"
#include "text/byte_alphabet.hpp"
#include "text/refusal.hpp"

namespace l4::text {

void Vocabulary::add(std::string_view spelled, std::int64_t id) {
  if (id < 0 || id > kHighestId) {
    throw damaged("the token " + in_quotes(spelled) + " has the id " + std::to_string(id) + ", which must be 0 to " +
                  std::to_string(kHighestId));
  }
  if (has(id)) {
    throw damaged("the id " + std::to_string(id) + " is that of two tokens, " + in_quotes(spelling(id)) + " and " +
                  in_quotes(spelled));
  }
  Token token;
  token.begin = static_cast<std::uint32_t>(bytes_.size());
  if (!spelled_bytes(spelled, bytes_)) {
    bytes_.resize(token.begin);
    bytes_.append(spelled);
    token.plain = 1;
  }
  if (bytes_.size() > INT32_MAX) throw damaged("its tokens have more than 2 GiB");
  token.size = static_cast<std::uint32_t>(bytes_.size() - token.begin) & INT32_MAX;
  if (static_cast<std::size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<std::size_t>(id) + 1);
  tokens_[static_cast<std::size_t>(id)] = token;
  ++count_;
}

Vocabulary::Slot Vocabulary::slot_of(std::string_view bytes, bool plain, std::int64_t id) {
  Slot slot;
  slot.head = head_of(bytes);
  slot.id_plus_1 = static_cast<std::int32_t>(id + 1);
  slot.size_and_plain = static_cast<std::uint32_t>(bytes.size()) << 1 | (plain ? 1 : 0);
  return slot;
}

void Vocabulary::index() {
  table_ = HashTable<Slot>(count_);
  indexed_ = count_;
  for (std::size_t id = 0; id < tokens_.size(); ++id) {
    if (tokens_[id].begin == kNone) continue;
    const std::string_view key = bytes(static_cast<std::int64_t>(id));
    const Slot added = slot_of(key, tokens_[id].plain, static_cast<std::int64_t>(id));
    if (table_.add(hash_of(key), added, [&](const Slot& slot) { return is_it(slot, added, key); }) != nullptr) {
      throw damaged("the token " + in_quotes(spelling(static_cast<std::int64_t>(id))) + " is twice in the vocabulary");
    }
  }
}

std::int32_t Vocabulary::find_in_table(std::string_view bytes, bool plain, std::uint64_t hash) const {
  const Slot wanted = slot_of(bytes, plain, -1);
  const Slot* slot = table_.find(hash, [&](const Slot& one) { return is_it(one, wanted, bytes); });
  return slot == nullptr ? -1 : slot->id_plus_1 - 1;
}

std::int32_t Vocabulary::find_bytes(std::string_view bytes, std::uint64_t hash) const {
  return find_in_table(bytes, false, hash);
}

std::int32_t Vocabulary::find(std::string_view spelled) const {
  std::string bytes;
  if (spelled_bytes(spelled, bytes)) return find_in_table(bytes, false, hash_of(bytes));
  return find_in_table(spelled, true, hash_of(spelled));
}

std::string Vocabulary::spelling(std::int64_t id) const {
  return tokens_[id].plain ? std::string(bytes(id)) : spelling_of(bytes(id));
}

}  // namespace l4::text
