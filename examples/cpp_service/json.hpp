// JSON of strangers, within limits.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace service {

using Json = nlohmann::ordered_json;  // templates see the members of a message in their order

// A document; throws Json::exception for what is none, is nested too deeply or has too many members.
Json read_json(std::string_view text);

// In ASCII alone, so that nothing a client has sent can break it.
inline std::string written(const Json& value) { return value.dump(-1, ' ', true, Json::error_handler_t::replace); }

}  // namespace service
