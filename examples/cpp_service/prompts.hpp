// Prompts as the engine takes them: token ids, with the tokens of images where a conversation shows some.
#pragma once

#include <vector>

#include "asked.hpp"
#include "library.hpp"
#include "request.hpp"

namespace service {

// All prompts of a request. Throws Refusal for what the model cannot take.
std::vector<Prompt> prompts_of(const Model& model, const Asked& asked);

}  // namespace service
