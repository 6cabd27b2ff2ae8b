#include "chat/text_find.hpp"

#include <cstring>
#include <string>

namespace l4::chat {

// std::string_view::find takes time in the product of the lengths where most of `wanted` is found again and again.
std::size_t found_in(std::string_view text, std::string_view wanted, std::size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (wanted.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

std::size_t last_found_in(std::string_view text, std::string_view wanted) {
  const std::string backwards(text.rbegin(), text.rend()), end(wanted.rbegin(), wanted.rend());
  const std::size_t found = found_in(backwards, end);
  return found == std::string_view::npos ? found : text.size() - found - wanted.size();
}

}  // namespace l4::chat
