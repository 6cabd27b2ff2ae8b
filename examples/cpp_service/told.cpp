#include "told.hpp"

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "tool_calls.hpp"

namespace service {
namespace {

// Characters of UTF-8.
std::size_t length_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// JSON has no -inf; OpenAI's interface says -9999.
double finite(double logprob) { return std::max(logprob, -9999.0); }

std::string fresh_id(const char* prefix) {
  std::uint64_t number = 0;
  check(l4_fresh_seed(&number));
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(number));
  return std::string(prefix) + digits;
}

}  // namespace

Json usage(const Answers& answers, std::size_t prompts) {
  std::size_t read = 0, reused = 0, chosen = 0;
  for (std::size_t i = 0; i < answers.size(); i += answers.size() / prompts) {
    read += answers[i]->prompt_tokens, reused += answers[i]->reused_tokens;
  }
  for (const auto& answer : answers) chosen += answer->chosen().size();
  return {{"prompt_tokens", read},
          {"completion_tokens", chosen},
          {"total_tokens", read + chosen},
          {"prompt_tokens_details", {{"cached_tokens", reused}}}};
}

Teller::Teller(const Model& model, bool is_chat, const std::string& name, const std::string& fingerprint,
               std::vector<std::string> tools)
    : model_(model), is_chat_(is_chat), tools_(std::move(tools)) {
  const std::string kind = is_chat ? "chat.completion" : "text_completion";
  head_ = {{"id", fresh_id(is_chat ? "chatcmpl-" : "cmpl-")},
           {"object", kind},
           {"created", static_cast<std::int64_t>(std::time(nullptr))},
           {"model", name},
           {"system_fingerprint", fingerprint}};
  chunk_head_ = head_;
  if (is_chat) chunk_head_["object"] = kind + ".chunk";
}

Json Teller::whole(const Answers& answers, std::size_t prompts) const {
  Json told = head_;
  told["choices"] = Json::array();
  for (std::size_t i = 0; i < answers.size(); ++i) told["choices"].push_back(choice(i, answers[i]->chosen()));
  told["usage"] = usage(answers, prompts);
  return told;
}

Json Teller::chunk(Json choices) const {
  Json told = chunk_head_;
  told["choices"] = std::move(choices);
  return told;
}

Json Teller::piece(std::size_t index, const std::string& text, const std::vector<Chosen>& chosen,
                   std::size_t offset) const {
  Json told = {{"index", index}};
  if (is_chat_) {
    told["delta"] = text.empty() ? Json::object() : Json{{"content", text}};
  } else {
    told["text"] = text;
  }
  told["logprobs"] = logprobs(chosen, offset);
  told["finish_reason"] = nullptr;
  return told;
}

Json Teller::begin(std::size_t index) const {
  Json told = piece(index, "", {}, 0);
  told["delta"] = {{"role", "assistant"}, {"content", ""}};
  return told;
}

Json Teller::end(std::size_t index, const std::string& reason) const {
  Json told = piece(index, "", {}, 0);
  told["finish_reason"] = reason;
  return told;
}

Json Teller::calls(const std::string& text) const {
  if (tools_.empty()) return nullptr;
  const auto calls = parse_calls(text, tools_);
  if (!calls) return nullptr;
  Json told = Json::array();
  for (const ToolCall& call : *calls) {
    const Json function = {{"name", call.name}, {"arguments", call.arguments.dump()}};
    told.push_back({{"id", fresh_id("call_")}, {"type", "function"}, {"function", function}});
  }
  return told;
}

bool Teller::holds(const std::string& text) const { return !tools_.empty() && may_be_calls(text); }

Json Teller::choice(std::size_t index, const std::vector<Chosen>& chosen) const {
  std::string text;
  for (const Chosen& item : chosen) text += item.text;
  Json told = {{"index", index}};
  std::string reason = chosen.back().reason;
  if (is_chat_) {
    told["message"] = {{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
    if (Json made = calls(text); !made.is_null()) {
      told["message"]["content"] = nullptr;
      told["message"]["tool_calls"] = std::move(made);
      reason = "tool_calls";
    }
  } else {
    told["text"] = text;
  }
  told["logprobs"] = logprobs(chosen, 0);
  told["finish_reason"] = reason;
  return told;
}

// Of all tokens but a stop token; `offset` is where their text begins, in the older of the two forms.
Json Teller::logprobs(const std::vector<Chosen>& chosen, std::size_t offset) const {
  Json content = Json::array(), tokens = Json::array(), values = Json::array(), tops = Json::array(),
       offsets = Json::array();
  for (const Chosen& item : chosen) {
    if (!item.has_logprob || item.is_stop_token) continue;
    Json told = token(item.token, item.logprob), list = Json::array(), named = Json::object();
    for (const l4_logprob& top : item.top) {
      list.push_back(token(top.token, top.logprob));
      named[model_.text_of(top.token)] = finite(top.logprob);
    }
    told["top_logprobs"] = std::move(list);
    tokens.push_back(told["token"]), values.push_back(told["logprob"]);
    tops.push_back(std::move(named)), offsets.push_back(offset);
    content.push_back(std::move(told));
    offset += length_of(item.text);
  }
  if (content.empty()) return nullptr;
  if (is_chat_) return {{"content", std::move(content)}, {"refusal", nullptr}};
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

Json Teller::token(std::int32_t id, double logprob) const {
  const std::string text = model_.text_of(id);
  Json bytes = nullptr;
  if (text.find("\xEF\xBF\xBD") == std::string::npos) {  // a part of a character has no text of its own
    bytes = Json::array();
    for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  }
  return {{"token", text}, {"logprob", finite(logprob)}, {"bytes", std::move(bytes)}};
}

}  // namespace service
