// The methods of Python's str.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/interpreter.hpp"

namespace l4::chat {

Value call_of_text(Run& run, const Value& self, const std::string& name, const Arguments& arguments);

// What filters use of them, too.
enum class Side { left, right, both };
std::string_view stripped(std::string_view text, Side side, const std::optional<std::string_view>& characters);
std::string replaced(const std::string& text, const std::string& from, const std::string& to, std::int64_t most,
                     Budget& budget);
std::vector<std::string_view> lines_of(std::string_view text, bool keep_ends, Budget& budget);
// `side`: where the text stands.
std::string padded(const Text& text, std::int64_t width, std::string_view fill, Side side, Budget& budget);

bool is_lower(const std::string& text);
bool is_upper(const std::string& text);

}  // namespace l4::chat
