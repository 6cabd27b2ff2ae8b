// Conversations as OpenAI's interface has them, into what chat templates want.
#pragma once

#include <string>
#include <vector>

#include "json.hpp"

namespace service {

// The messages with parts of type text and image alone, and past calls with their arguments as objects. The data of
// images (base64) goes to `images`. Throws Refusal for what is no message.
Json conversation(const Json& messages, std::vector<std::string>& images);

}  // namespace service
