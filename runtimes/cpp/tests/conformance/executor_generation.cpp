// The calls that generate.
#include "arguments.hpp"
#include "executor.hpp"

namespace conformance {

using l4::json::Array;
using l4::json::Object;

namespace {

// The settings of a row; rows that share settings draw from streams of their own.
l4_sampling sampling_of(const Value& settings, std::uint64_t stream) {
  l4_sampling sampling = L4_SAMPLING_DEFAULT;
  sampling.temperature = real_or(settings, "temperature", sampling.temperature);
  sampling.top_p = real_or(settings, "top_p", sampling.top_p);
  sampling.min_p = real_or(settings, "min_p", sampling.min_p);
  sampling.repetition_penalty = real_or(settings, "repetition_penalty", sampling.repetition_penalty);
  sampling.top_k = number_or(settings, "top_k", sampling.top_k);
  sampling.has_seed = settings.find("seed") != nullptr;
  sampling.seed = static_cast<std::uint64_t>(number_or(settings, "seed", 0));
  sampling.stream = stream;
  return sampling;
}

// What has been generated of one row.
struct Answer {
  Array ids, logprobs;
  std::string text;
  Value finish_reason;
};

struct Answers {
  std::vector<Answer> rows;
  bool with_logprobs;
};

int on_token(void* user, const l4_token* token) {
  Answers& answers = *static_cast<Answers*>(user);
  Answer& answer = answers.rows[static_cast<std::size_t>(token->row)];
  answer.ids.emplace_back(std::int64_t{token->id});
  answer.text.append(token->text, token->text_bytes);
  if (token->finish_reason != nullptr) answer.finish_reason = token->finish_reason;
  if (answers.with_logprobs) {
    Array top;
    for (std::size_t i = 0; i < token->top_count; ++i) {
      top.push_back(Array{std::int64_t{token->top[i].token}, token->top[i].logprob});
    }
    answer.logprobs.push_back(Array{token->logprob, std::move(top)});
  }
  return L4_CONTINUE;
}

}  // namespace

Object Executor::session_generate(l4_session* session, const Value& call) {
  const Array& given = argument(call, "prompts").array();
  const Value* settings = call.find("sampling");
  const bool shared = settings != nullptr && settings->is_object();
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<l4_sampling> sampling;
  for (std::size_t row = 0; row < given.size(); ++row) {
    ids.push_back(tokens(given[row]));
    if (settings != nullptr) {
      sampling.push_back(shared ? sampling_of(*settings, row) : sampling_of(settings->array()[row], 0));
    }
  }
  std::vector<l4_prompt> prompts;
  for (std::size_t row = 0; row < given.size(); ++row) {
    prompts.push_back({sizeof(l4_prompt), ids[row].data(), ids[row].size(), images_at(call, row),
                       sampling.empty() ? nullptr : &sampling[row]});
  }
  l4_generate_options options = L4_GENERATE_OPTIONS_DEFAULT;
  options.max_new_tokens = argument(call, "max_new_tokens").integer();
  options.logprobs = number_or(call, "logprobs", -1);
  std::vector<std::int32_t> stop_ids;
  if (const Value* stops = call.find("stop_token_ids")) {
    stop_ids = integers<std::int32_t>(*stops);
    options.stop_token_ids = stop_ids.data();
    options.stop_token_count = stop_ids.size();
  }
  std::vector<const char*> stop_strings;
  if (const Value* stops = call.find("stop_strings")) {
    for (const Value& stop : stops->array()) stop_strings.push_back(stop.string().c_str());
    options.stop_strings = stop_strings.data();
    options.stop_string_count = stop_strings.size();
  }
  const bool with_text = flag(call, "text");
  if (with_text) options.tokenizer = shared_.tokenizer.get();
  Answers answers{std::vector<Answer>(given.size()), options.logprobs >= 0};
  check(l4_session_generate(session, prompts.data(), prompts.size(), &options, on_token, &answers));
  Array rows;
  for (Answer& answer : answers.rows) {
    Object row;
    row.add("ids", std::move(answer.ids));
    row.add("finish_reason", answer.finish_reason);
    row.add("logprobs", std::move(answer.logprobs));
    if (with_text) row.add("text", answer.text);
    rows.push_back(std::move(row));
  }
  Object told;
  told.add("rows", std::move(rows));
  return told;
}

}  // namespace conformance
