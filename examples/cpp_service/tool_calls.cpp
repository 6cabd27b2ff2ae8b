#include "tool_calls.hpp"

#include <algorithm>
#include <stdexcept>

#include "python_calls.hpp"

namespace service {
namespace {

constexpr std::string_view kMarks[] = {"<|python_start|>", "<|python_end|>"};
constexpr std::string_view kSpace = " \t\n\r\f\v";

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kSpace);
  return first == std::string_view::npos ? std::string_view{}
                                         : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// Bytes of the object or list with which a text begins: up to the bracket that closes it.
std::size_t extent(std::string_view text) {
  std::size_t depth = 0;
  bool quoted = false;
  for (std::size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted) {
      if (c == '\\') ++at;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '{' || c == '[') {
      ++depth;
    } else if ((c == '}' || c == ']') && --depth == 0) {
      return at + 1;
    }
    if (depth == 0) break;  // it begins with no bracket
  }
  throw std::invalid_argument("no whole value");
}

ToolCall json_call(const Json& value) {
  const char* key = value.contains("parameters") && value["parameters"].is_object() ? "parameters" : "arguments";
  if (!value.is_object() || !value.contains("name") || !value["name"].is_string() || !value.contains(key) ||
      !value[key].is_object()) {
    throw std::invalid_argument("no call");
  }
  return {value["name"].get<std::string>(), value[key]};
}

std::vector<ToolCall> json_calls(std::string_view text) {
  std::vector<ToolCall> calls;
  while (!text.empty()) {
    const std::size_t end = extent(text);
    const Json value = read_json(text.substr(0, end));
    if (value.is_array()) {
      for (const Json& item : value) calls.push_back(json_call(item));
    } else {
      calls.push_back(json_call(value));
    }
    const std::size_t next = text.find_first_not_of(" \n\t;,", end);
    text = next == std::string_view::npos ? std::string_view{} : text.substr(next);
  }
  return calls;
}

std::vector<ToolCall> calls_of(std::string_view text) {
  try {
    return json_calls(text);
  } catch (const std::exception&) {
    return python_calls(text);
  }
}

}  // namespace

bool may_be_calls(std::string_view text) {
  const std::size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return true;
  const std::string_view begun = text.substr(first);
  const std::size_t shared = std::min(begun.size(), kMarks[0].size());
  return begun[0] == '{' || begun[0] == '[' || begun.substr(0, shared) == kMarks[0].substr(0, shared);
}

std::optional<std::vector<ToolCall>> parse_calls(std::string text, const std::vector<std::string>& names) {
  for (const std::string_view mark : kMarks) {
    for (std::size_t at; (at = text.find(mark)) != std::string::npos;) text.replace(at, mark.size(), " ");
  }
  try {
    std::vector<ToolCall> calls = calls_of(trimmed(text));
    const auto is_known = [&](const ToolCall& call) {
      return std::find(names.begin(), names.end(), call.name) != names.end();
    };
    if (!calls.empty() && std::all_of(calls.begin(), calls.end(), is_known)) return calls;
  } catch (const std::exception&) {
    // it is text
  }
  return std::nullopt;
}

}  // namespace service
