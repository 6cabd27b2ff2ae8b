// Documents of JSON, as files of engines and checkpoints hold them.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.hpp"

namespace l4::storage {

// What a file that could not be read seems to be, and what to do; none where its first bytes say nothing.
std::optional<std::string> foreign_kind(std::string_view head);

// An object of strict JSON. Raises Error (L4_BAD_INPUT), beginning with `where`, for anything else.
json::Value parse_json_object(std::string_view text, const std::string& where);

}  // namespace l4::storage
