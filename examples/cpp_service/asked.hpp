// What clients ask, in OpenAI's terms. A field that this service does not obey is refused, unless it says nothing.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "json.hpp"
#include "library.hpp"

namespace service {

// A prompt as it was given: a text, or token ids.
struct RawPrompt {
  std::optional<std::string> text;
  Ids ids;
};

struct Asked {
  bool is_chat = false;
  std::string model;
  bool stream = false, tells_usage = false;
  std::size_t n = 1;
  std::vector<std::string> stops;
  std::optional<std::size_t> max_tokens;
  std::optional<std::size_t> likeliest;  // tokens told with each; none: no log probabilities
  l4_sampling sampling = L4_SAMPLING_DEFAULT;

  std::vector<RawPrompt> prompts;   // of /v1/completions
  Json messages;                    // of a chat, as templates want them
  std::vector<std::string> images;  // the data of its images, in their order: base64
  Json tools;                       // that the model may call: a list, or null
  std::vector<std::string> tool_names;
};

// Throw Refusal (400), which names the field.
Asked read_chat(const Json& body);
Asked read_completion(const Json& body);

}  // namespace service
