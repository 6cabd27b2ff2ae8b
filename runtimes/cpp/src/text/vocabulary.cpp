#include "text/vocabulary.hpp"

#include "base/error.hpp"
#include "text/byte_alphabet.hpp"
#include "text/refusal.hpp"

namespace l4::text {

Vocabulary::Token Vocabulary::store(std::string_view spelled, std::int64_t id) {
  if (id < 0 || id > kHighestId) {
    throw damaged("the token " + quoted(spelled) + " has the id " + std::to_string(id) + ", which must be 0 to " +
                    std::to_string(kHighestId));
  }
  if (has(id)) {
    throw damaged("the id " + std::to_string(id) + " is that of two tokens, " + quoted(spelling(id)) + " and " +
                    quoted(spelled));
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
  return token;
}

void Vocabulary::add(std::string_view spelled, std::int64_t id) {
  const Token token = store(spelled, id);
  Table& table = token.plain ? by_plain_spelling_ : by_bytes_;
  const std::string_view key = bytes(id);
  if (find_in(table, key) >= 0) throw damaged("the token " + quoted(spelled) + " is twice in the vocabulary");
  Slot slot;
  slot.high = static_cast<std::uint32_t>(hash_of(key) >> 32);
  slot.id_plus_1 = static_cast<std::int32_t>(id + 1);
  table.add(slot);
  ++count_;
}

void Vocabulary::place(std::string_view spelled, std::int64_t id) { store(spelled, id); }

std::int32_t Vocabulary::find_in(const Table& table, std::string_view key) const {
  const auto high = static_cast<std::uint32_t>(hash_of(key) >> 32);
  const Slot* slot = table.find(static_cast<std::uint64_t>(high) << 32, [&](const Slot& one) {
    return one.high == high && bytes(one.id_plus_1 - 1) == key;
  });
  return slot == nullptr ? -1 : slot->id_plus_1 - 1;
}

std::int32_t Vocabulary::find_bytes(std::string_view bytes) const { return find_in(by_bytes_, bytes); }

std::int32_t Vocabulary::find(std::string_view spelled) const {
  std::string bytes;
  return spelled_bytes(spelled, bytes) ? find_in(by_bytes_, bytes) : find_in(by_plain_spelling_, spelled);
}

std::string Vocabulary::spelling(std::int64_t id) const {
  return tokens_[id].plain ? std::string(bytes(id)) : spelling_of(bytes(id));
}

}  // namespace l4::text
