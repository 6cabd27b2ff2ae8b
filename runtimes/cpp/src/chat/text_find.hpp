// Where a text lies in another one, in a time that grows with the sum of their lengths: a template may choose both.
#pragma once

#include <cstddef>
#include <string_view>

namespace l4::chat {

// The first place from `from` on, in bytes; npos where there is none.
std::size_t found_in(std::string_view text, std::string_view wanted, std::size_t from = 0);

// The last place.
std::size_t last_found_in(std::string_view text, std::string_view wanted);

}  // namespace l4::chat
