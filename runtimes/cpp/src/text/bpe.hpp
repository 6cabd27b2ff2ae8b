// Byte-level BPE: words are cut to bytes, and neighbours merged into tokens, always the pair that was learned first.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/hashing.hpp"
#include "text/splitting.hpp"
#include "text/vocabulary.hpp"

namespace l4::text {

struct Merge {
  std::int32_t left = 0, right = 0;  // ids of two tokens
  std::uint32_t rank_plus_1 = 0;     // 0: there is no such merge
  std::int32_t id = 0;               // of the token that they make

  bool empty() const { return rank_plus_1 == 0; }
};

// Which pairs of tokens can be merged. Of a pair that is given twice, the last one counts.
class Merges {
 public:
  Merges() = default;
  explicit Merges(const std::vector<Merge>& merges);

  const Merge* find(std::int32_t left, std::int32_t right) const {  // nullptr where there is none
    return table_.find(hash(left, right), [&](const Merge& one) { return one.left == left && one.right == right; });
  }

 private:
  static std::uint64_t hash(std::int32_t left, std::int32_t right) {
    return mix(static_cast<std::uint64_t>(left), static_cast<std::uint64_t>(right));
  }

  HashTable<Merge> table_;
};

// A model: what words are, and which tokens they become.
struct Bpe {
  Vocabulary vocabulary;
  Merges merges;
  Splitter splitter = split_nowhere;
  bool whole_words_first = false;         // a word that is a token is not merged from its bytes ("ignore_merges")
  std::array<std::int32_t, 256> bytes{};  // the token of each byte; -1: it has none and is left out
};

// Encodes parts of one text.
class WordEncoder {
 public:
  // Tokens are added to `ids`. `size`: of the whole text, in bytes.
  WordEncoder(const Bpe& model, std::vector<std::int32_t>& ids, std::size_t size);

  // Add the tokens of a part that is cut for itself, valid UTF-8. It must live as long as the encoder.
  void encode(std::string_view part);

 private:
  struct Symbol {
    std::int32_t id;              // -1: it has become part of the one before it
    std::int32_t previous, next;  // -1: there is none
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t at;  // index of the left symbol
    const Merge* merge;
  };
  struct Seen {
    std::string_view word;
    std::size_t first = 0, count = 0;  // its tokens among `ids`
  };

  void encode_word(std::string_view word);
  void merge(std::string_view word);
  void offer(std::int32_t at);

  const Bpe& model_;
  std::vector<std::int32_t>& ids_;
  std::vector<Seen> seen_;  // words of this text, by hash; a power of two
  std::vector<Symbol> symbols_;
  std::vector<Candidate> candidates_;  // a heap: the lowest rank first, of those the leftmost
};

}  // namespace l4::text
