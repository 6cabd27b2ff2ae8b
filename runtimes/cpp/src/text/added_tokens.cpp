#include "text/added_tokens.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

namespace l4::text {

bool operator==(const AddedToken& a, const AddedToken& b) {
  const auto all = [](const AddedToken& token) {
    return std::tie(token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special);
  };
  return all(a) == all(b);
}

TokenFinder::TokenFinder(std::vector<std::string> texts) {
  for (std::string& text : texts) {
    begins_[static_cast<unsigned char>(text[0])] = true;
    texts_.push_back({std::move(text), static_cast<std::int32_t>(texts_.size())});
  }
  std::sort(texts_.begin(), texts_.end(), [](const Text& a, const Text& b) { return a.text < b.text; });
}

bool TokenFinder::find(std::string_view text, std::size_t from, Found& found) const {
  if (texts_.empty()) return false;
  for (std::size_t at = from; at < text.size(); ++at) {
    if (begins_[static_cast<unsigned char>(text[at])] &&
        longest_at(text, at, found, [](std::size_t) { return true; })) {
      return true;
    }
  }
  return false;
}

}  // namespace l4::text
