// Tokens that are found in a text before it is cut into words: special ones, and others that were added to a
// vocabulary.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace l4::text {

struct AddedToken {
  std::string content;
  bool single_word = false;  // found only where no letter or digit touches it
  bool lstrip = false;       // takes the white space before it too
  bool rstrip = false;       // and behind it
  bool normalized = true;    // looked for after those that are not
  bool special = false;
};

bool operator==(const AddedToken& a, const AddedToken& b);

// Finds the texts of some tokens: the first that comes, of those that begin together the longest.
class TokenFinder {
 public:
  struct Found {
    std::size_t at, length;
    std::int32_t index;  // of the token, in the order in which they were given
  };

  TokenFinder() = default;
  explicit TokenFinder(std::vector<std::string> texts);  // none of them empty, no two the same

  bool empty() const { return texts_.empty(); }

  // The next one from `from` on; false where there is none.
  bool find(std::string_view text, std::size_t from, Found& found) const;

  // The longest one that begins at `at`, of those which `accept(end)` takes.
  template <typename Accept>
  bool longest_at(std::string_view text, std::size_t at, Found& found, Accept&& accept) const;

 private:
  struct Text {
    std::string text;
    std::int32_t index;
  };
  std::vector<Text> texts_;           // sorted
  std::array<bool, 256> begins_{};    // bytes that a text begins with
};

template <typename Accept>
bool TokenFinder::longest_at(std::string_view text, std::size_t at, Found& found, Accept&& accept) const {
  // texts_[low, high) have the bytes from `at` on in common with the text; those that end here come first
  std::size_t low = 0, high = texts_.size();
  bool any = false;
  for (std::size_t depth = 0; at + depth < text.size() && low < high; ++depth) {
    const auto byte = static_cast<unsigned char>(text[at + depth]);
    const auto position = [&](unsigned bound) {  // of the first text whose byte is `bound` or above
      std::size_t first = low, count = high - low;
      while (count > 0) {
        const std::size_t half = count / 2;
        const std::string& candidate = texts_[first + half].text;
        const bool below = candidate.size() <= depth || static_cast<unsigned char>(candidate[depth]) < bound;
        if (below) first += half + 1;
        count = below ? count - half - 1 : half;
      }
      return first;
    };
    const std::size_t next = position(byte);
    high = position(byte + 1u);
    low = next;
    if (low < high && texts_[low].text.size() == depth + 1 && accept(at + depth + 1)) {
      found = {at, depth + 1, texts_[low].index};
      any = true;
    }
  }
  return any;
}

}  // namespace l4::text
