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
  // A token of the model, as it is spelled in the vocabulary. Raises Refusal where the token or its id is
  // there already, or the id is negative or too high.
  void add(std::string_view spelled, std::int64_t id);

  // The text of an id that is not the model's. It is decoded, and not found by `find`. Raises as `add`.
  void place(std::string_view spelled, std::int64_t id);

  std::int32_t find_bytes(std::string_view bytes) const;  // the token with these bytes; -1: there is none
  std::int32_t find(std::string_view spelled) const;      // the token of that spelling; -1: there is none

  std::size_t size() const { return count_; }                  // tokens of the model
  std::size_t ids() const { return tokens_.size(); }           // the highest id + 1
  bool has(std::int64_t id) const { return id >= 0 && static_cast<std::size_t>(id) < ids() && tokens_[id].begin != kNone; }

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
  struct Slot {
    std::uint32_t high = 0;     // of the hash: most others are told apart by it
    std::int32_t id_plus_1 = 0;
    bool empty() const { return id_plus_1 == 0; }
    std::uint64_t hash() const { return static_cast<std::uint64_t>(high) << 32; }
  };
  using Table = HashTable<Slot>;

  Token store(std::string_view spelled, std::int64_t id);
  std::int32_t find_in(const Table& table, std::string_view bytes) const;

  std::string bytes_;
  std::vector<Token> tokens_;  // by id
  Table by_bytes_, by_plain_spelling_;
  std::size_t count_ = 0;
};

}  // namespace l4::text
