// A chat as JSON: messages, the name of a template, and what else the template sees.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.hpp"

namespace l4::chat {

struct Chat {
  json::Array messages;                      // objects
  std::optional<std::string> chat_template;  // its name
  json::Object variables;                    // all other keys
  json::Value add_generation_prompt = true;
};

// Raises Error (L4_BAD_INPUT) for what is no such document.
Chat read_chat(std::string_view document);

// Whether a part of some message holds an image; {"type": "image"} alone does not.
bool holds_images(const json::Array& messages);

}  // namespace l4::chat
