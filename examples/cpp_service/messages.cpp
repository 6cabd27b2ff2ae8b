#include "messages.hpp"

#include <algorithm>

#include "refusal.hpp"

namespace service {
namespace {

Refusal refuse(const std::string& where, const std::string& problem) { return {where + problem, "messages"}; }

bool has_text(const Json& value, const char* name) {
  return value.is_object() && value.contains(name) && value[name].is_string();
}

Json part_of(const Json& part, const std::string& where, std::vector<std::string>& images) {
  const std::string type = has_text(part, "type") ? part["type"].get<std::string>() : "";
  if (type == "text" && has_text(part, "text")) return {{"type", "text"}, {"text", part["text"]}};
  if (type == "image_url" && part.contains("image_url") && has_text(part["image_url"], "url")) {
    const std::string url = part["image_url"]["url"].get<std::string>();
    const std::size_t data = url.find(";base64,");
    if (url.compare(0, 11, "data:image/") != 0 || data == std::string::npos) {
      throw refuse(where, ": an image must be a data:image/...;base64 URL; others are not followed");
    }
    images.push_back(url.substr(data + 8));
    return {{"type", "image"}};
  }
  throw refuse(where, " is no part of type text or image_url");
}

// A call of the past: templates want its arguments as an object, and OpenAI's interface has them as JSON text.
Json call_of(const Json& call, const std::string& where) {
  if (!call.is_object() || !call.contains("function") || !has_text(call["function"], "name") ||
      !has_text(call["function"], "arguments")) {
    throw refuse(where, " has no function with a name and arguments");
  }
  Json made = call;
  const std::string arguments = call["function"]["arguments"].get<std::string>();
  try {
    made["function"] = {{"name", call["function"]["name"]},
                        {"arguments", read_json(arguments.empty() ? "{}" : arguments)}};
  } catch (const Json::exception&) {
    throw refuse(where, ".function.arguments is not JSON");
  }
  return made;
}

Json message_of(const Json& message, const std::string& where, std::vector<std::string>& images) {
  static const std::string roles[] = {"system", "developer", "user", "assistant", "tool"};
  if (!has_text(message, "role") || std::find(std::begin(roles), std::end(roles), message["role"]) == std::end(roles)) {
    throw refuse(where, ".role is not one of system, developer, user, assistant, tool");
  }
  Json made = message;
  const Json content = message.value("content", Json());
  const Json calls = message.value("tool_calls", Json());
  const bool has_calls = calls.is_array() && !calls.empty();
  if (!calls.is_null() && !calls.is_array()) throw refuse(where, ".tool_calls is not a list");
  if (content.is_array()) {
    made["content"] = Json::array();
    for (std::size_t i = 0; i < content.size(); ++i) {
      made["content"].push_back(part_of(content[i], where + ".content[" + std::to_string(i) + "]", images));
    }
  } else if (content.is_null() && has_calls) {
    made["content"] = "";
  } else if (!content.is_string()) {
    throw refuse(where, ".content is neither text nor a list of parts");
  }
  for (std::size_t i = 0; has_calls && i < calls.size(); ++i) {
    made["tool_calls"][i] = call_of(calls[i], where + ".tool_calls[" + std::to_string(i) + "]");
  }
  return made;
}

}  // namespace

Json conversation(const Json& messages, std::vector<std::string>& images) {
  Json made = Json::array();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    made.push_back(message_of(messages[i], "messages[" + std::to_string(i) + "]", images));
  }
  return made;
}

}  // namespace service
