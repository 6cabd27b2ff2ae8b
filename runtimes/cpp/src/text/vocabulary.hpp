// The tokens of a byte-level vocabulary: by their bytes, by their spelling, and by their ids.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/hashing.hpp"

namespace l4::text {

constexpr std::int64_t kHighestId = 1 << 24;  // of a token; tables are as long as the highest one says

class Vocabulary {
 public:
  // A token as it is spelled in the vocabulary. Raises Refusal where its id is another token's, negative or too high.
  void add(std::string_view spelled, std::int64_t id);

  // Have all tokens found that were added so far; those that are added later are decoded alone. Raises Refusal where
  // two of them are the same.
  void index();

  std::int32_t find_bytes(std::string_view bytes, std::uint64_t hash) const;  // token with these bytes; -1: none has
  std::int32_t find_bytes(std::string_view bytes) const { return find_bytes(bytes, hash_of(bytes)); }
  std::int32_t find(std::string_view spelled) const;  // the token of that spelling; -1: there is none
  void prefetch(std::uint64_t hash) const { table_.prefetch(hash); }

  std::size_t size() const { return indexed_; }       // tokens that can be found
  std::size_t ids() const { return tokens_.size(); }  // the highest id + 1
  bool has(std::int64_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < ids() && tokens_[id].begin != kNone;
  }

  // Of an id that it has: the bytes that decoding gives, and the token's spelling.
  std::string_view bytes(std::int64_t id) const {
    return std::string_view(bytes_).substr(tokens_[id].begin, tokens_[id].size);
  }
  std::string spelling(std::int64_t id) const;

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  struct Token {
    std::uint32_t begin = kNone;  // in bytes_
    std::uint32_t size : 31;
    std::uint32_t plain : 1;  // its characters do not all stand for bytes: the spelling itself is kept
    Token() : size(0), plain(0) {}
  };
  // Short tokens are told apart without looking elsewhere.
  struct Slot {
    std::uint64_t head = 0;
    std::int32_t id_plus_1 = 0;
    std::uint32_t size_and_plain = 0;
    bool empty() const { return id_plus_1 == 0; }
  };
  static Slot slot_of(std::string_view bytes, bool plain, std::int64_t id);
  bool is_it(const Slot& slot, const Slot& wanted, std::string_view bytes) const {
    return slot.head == wanted.head && slot.size_and_plain == wanted.size_and_plain &&
           (bytes.size() <= 8 || this->bytes(slot.id_plus_1 - 1) == bytes);
  }
  std::int32_t find_in_table(std::string_view bytes, bool plain, std::uint64_t hash) const;

  std::string bytes_;
  std::vector<Token> tokens_;  // by id
  HashTable<Slot> table_;
  std::size_t count_ = 0, indexed_ = 0;
};

}  // namespace l4::text
