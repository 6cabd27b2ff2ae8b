#include "asked.hpp"

#include <algorithm>
#include <limits>

#include "fields.hpp"
#include "messages.hpp"

namespace service {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

std::vector<std::string> stops_of(const Json* stop) {
  std::vector<std::string> stops;
  if (stop == nullptr) return stops;
  const Json several = stop->is_array() ? *stop : Json::array({*stop});
  for (const Json& item : several) {
    const bool is_text = item.is_string() && !item.get<std::string>().empty();
    if (!is_text || item.get<std::string>().find('\0') != std::string::npos) {
      throw Fields::refuse("stop", "a text, or a list of texts, none of them empty");
    }
    stops.push_back(item.get<std::string>());
  }
  return stops;
}

// A seed is any integer of 64 bits, with or without a sign.
void read_seed(Fields& fields, l4_sampling& sampling) {
  const Json* seed = fields.find("seed");
  if (seed == nullptr) return;
  if (!seed->is_number_integer()) throw Fields::refuse("seed", "a whole number");
  sampling.has_seed = 1;
  sampling.seed =
      seed->is_number_unsigned() ? seed->get<std::uint64_t>() : static_cast<std::uint64_t>(seed->get<std::int64_t>());
}

l4_sampling sampling_of(Fields& fields) {
  l4_sampling sampling = L4_SAMPLING_DEFAULT;
  sampling.temperature = fields.number("temperature").value_or(sampling.temperature);
  sampling.top_p = fields.number("top_p").value_or(sampling.top_p);
  sampling.min_p = fields.number("min_p").value_or(sampling.min_p);
  sampling.repetition_penalty = fields.number("repetition_penalty").value_or(sampling.repetition_penalty);
  sampling.top_k = fields.whole("top_k", 0, kMost).value_or(sampling.top_k);
  read_seed(fields, sampling);
  const float logit = 0;
  std::int32_t token = 0;
  if (l4_sample(&logit, 1, &sampling, 0, nullptr, 0, &token) != L4_OK) {  // the library knows what is possible
    const std::string why = l4_last_error();
    throw Refusal(why, why.substr(0, why.find_first_of(" :")));
  }
  return sampling;
}

bool says_nothing(const Json& bias) {
  return bias.is_object() &&
         std::all_of(bias.begin(), bias.end(), [](const Json& value) { return value.is_null() || value == 0; });
}

// What both routes take.
Asked read_common(Fields& fields) {
  Asked asked;
  asked.model = fields.text("model");
  asked.stream = fields.flag("stream");
  if (const Json* options = fields.find("stream_options")) {
    Fields inner(*options);
    asked.tells_usage = inner.flag("include_usage");
    inner.only("include_obfuscation", false);
    inner.refuse_others();
  }
  asked.n = static_cast<std::size_t>(fields.whole("n", 1, 1'000'000).value_or(1));
  asked.stops = stops_of(fields.find("stop"));
  if (const auto most = fields.whole("max_tokens", 1, kMost)) asked.max_tokens = static_cast<std::size_t>(*most);
  asked.sampling = sampling_of(fields);
  const Json* bias = fields.find("logit_bias");
  if (bias != nullptr && !says_nothing(*bias)) throw Refusal("logit_bias: this service does not have it", "logit_bias");
  fields.only("presence_penalty", 0);
  fields.only("frequency_penalty", 0);
  for (const char* name : {"user", "metadata"}) fields.ignore(name);
  return asked;
}

std::optional<RawPrompt> ids_prompt(const Json& value) {
  RawPrompt prompt;
  if (!value.is_array()) return std::nullopt;
  for (const Json& id : value) {
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<std::int32_t>::max()) return std::nullopt;
    prompt.ids.push_back(id.get<std::int32_t>());
  }
  if (prompt.ids.empty()) return std::nullopt;
  return prompt;
}

std::vector<RawPrompt> prompts_of(const Json* given) {
  const auto one = [](const Json& value) {
    if (value.is_string()) return RawPrompt{value.get<std::string>(), {}};
    if (auto prompt = ids_prompt(value)) return *prompt;
    throw Fields::refuse("prompt", "a text, token ids, or a list of either");
  };
  if (given == nullptr) throw Fields::refuse("prompt", "a text, token ids, or a list of either");
  if (!given->is_array() || given->empty() || given->front().is_number()) return {one(*given)};
  std::vector<RawPrompt> prompts;
  for (const Json& value : *given) prompts.push_back(one(value));
  return prompts;
}

void read_limits(Fields& fields, Asked& asked) {
  const auto most = fields.whole("max_completion_tokens", 1, kMost);
  if (!most) return;
  const auto count = static_cast<std::size_t>(*most);
  if (asked.max_tokens && *asked.max_tokens != count) {
    throw Refusal("max_tokens and max_completion_tokens differ: give one of them", "max_tokens");
  }
  asked.max_tokens = count;
}

void read_logprobs(Fields& fields, Asked& asked) {
  const bool wanted = fields.flag("logprobs");
  const auto top = fields.whole("top_logprobs", 0, 20);
  if (top && !wanted) throw Refusal("top_logprobs needs logprobs: true", "top_logprobs");
  if (wanted) asked.likeliest = static_cast<std::size_t>(top.value_or(0));
}

void read_tools(Fields& fields, Asked& asked) {
  const Json *tools = fields.find("tools"), *choice = fields.find("tool_choice");
  if (choice != nullptr && *choice != "auto" && *choice != "none") {
    throw Refusal("tool_choice: this service has \"auto\" and \"none\"", "tool_choice");
  }
  if (tools == nullptr) return;
  if (!tools->is_array()) throw Fields::refuse("tools", "a list");
  for (const Json& tool : *tools) {
    const bool is_function = tool.is_object() && tool.value("type", Json()) == "function" &&
                             tool.contains("function") && tool["function"].is_object() &&
                             tool["function"].value("name", Json()).is_string();
    if (!is_function) {
      throw Refusal(R"(tools: a tool is {"type": "function", "function": {"name": ..., "parameters": ...}})", "tools");
    }
    asked.tool_names.push_back(tool["function"]["name"].get<std::string>());
  }
  if (tools->empty() || (choice != nullptr && *choice == "none")) {
    asked.tool_names.clear();
  } else {
    asked.tools = *tools;
  }
}

}  // namespace

Asked read_chat(const Json& body) {
  Fields fields(body);
  Asked asked = read_common(fields);
  asked.is_chat = true;
  read_limits(fields, asked);
  read_logprobs(fields, asked);
  read_tools(fields, asked);
  fields.only("response_format", {{"type", "text"}});
  fields.only("modalities", Json::array({"text"}));
  for (const char* name : {"parallel_tool_calls", "store", "service_tier"}) fields.ignore(name);
  const Json* messages = fields.find("messages");
  fields.refuse_others();
  if (messages == nullptr || !messages->is_array() || messages->empty())
    throw Fields::refuse("messages", "a list of messages");
  asked.messages = conversation(*messages, asked.images);
  return asked;
}

Asked read_completion(const Json& body) {
  Fields fields(body);
  Asked asked = read_common(fields);
  const auto likeliest = fields.whole("logprobs", 0, 20);
  if (likeliest) asked.likeliest = static_cast<std::size_t>(*likeliest);
  fields.only("best_of", 1);
  fields.only("echo", false);
  fields.only("suffix", nullptr);
  asked.prompts = prompts_of(fields.find("prompt"));
  fields.refuse_others();
  return asked;
}

}  // namespace service
