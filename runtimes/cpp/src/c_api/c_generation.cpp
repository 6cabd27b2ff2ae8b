// Generation, as the C ABI has it: `l4_session_generate` is a loop on the steps of an l4_generation.
#include "c_api/guard.hpp"
#include "c_api/images_handle.hpp"
#include "c_api/session_handles.hpp"
#include "c_api/tokenizer_handle.hpp"
#include "generation/generation.hpp"

using namespace l4;
using namespace l4::c_api;
using generation::Generation;
using generation::Options;
using generation::Prompt;

struct l4_generation {
  Generation generation;
};

namespace {

std::vector<Prompt> prompts_of(const l4_prompt* prompts, size_t count) {
  constexpr l4_prompt kNothing{sizeof(l4_prompt), nullptr, 0, nullptr, nullptr};
  std::vector<Prompt> rows;
  for (size_t index = 0; index < count; ++index) {
    const l4_prompt prompt = element_of(prompts, index, kNothing);
    if (prompt.count != 0) given(prompt.ids, "the ids of a prompt");
    rows.push_back({prompt.ids, prompt.count, prompt.images != nullptr ? prompt.images->images : nullptr,
                    options_of(prompt.sampling, sampling::kGreedy)});
  }
  return rows;
}

Options options_for(const l4_generate_options* from) {
  const l4_generate_options options = options_of<l4_generate_options>(from, L4_GENERATE_OPTIONS_DEFAULT);
  Options found;
  found.max_new_tokens = options.max_new_tokens;
  found.has_stop_tokens = options.stop_token_ids != nullptr;
  if (found.has_stop_tokens) {
    found.stop_tokens.assign(options.stop_token_ids, options.stop_token_ids + options.stop_token_count);
  }
  if (options.tokenizer != nullptr) found.tokenizer = options.tokenizer->tokenizer;
  if (options.stop_string_count != 0) given(options.stop_strings, "stop_strings");
  for (size_t index = 0; index < options.stop_string_count; ++index) {
    found.stop_strings.emplace_back(&given(options.stop_strings[index], "a stop string"));
  }
  found.logprobs = options.logprobs;
  return found;
}

Generation started(l4_session* session, const l4_prompt* prompts, size_t count, const l4_generate_options* options) {
  return Generation(session->session, prompts_of(prompts, count), options_for(options));
}

}  // namespace

extern "C" l4_status l4_generation_start(l4_session* session, const l4_prompt* prompts, size_t count,
                                         const l4_generate_options* options, l4_generation** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    const Session::Call call(*given(session, "session").session, "generate");
    *out = new l4_generation{started(session, prompts, count, options)};
  });
}

extern "C" l4_status l4_generation_next(l4_generation* generation, const l4_token** tokens, size_t* count) {
  return guarded([&] {
    given(tokens, "tokens"), given(count, "count") = 0;
    Generation& running = given(generation, "generation").generation;
    const Session::Call call(*running.session(), "generate");
    const std::vector<l4_token>& chosen = running.step(call);
    *tokens = chosen.data();
    *count = chosen.size();
  });
}

extern "C" l4_status l4_generation_stop(l4_generation* generation, int32_t row) {
  return guarded([&] {
    Generation& running = given(generation, "generation").generation;
    const Session::Call call(*running.session(), "generate");
    running.stop(row);
  });
}

extern "C" void l4_generation_close(l4_generation* generation) { delete generation; }

extern "C" l4_status l4_session_generate(l4_session* session, const l4_prompt* prompts, size_t count,
                                         const l4_generate_options* options, l4_on_token on_token, void* user) {
  return guarded([&] {
    if (on_token == nullptr) throw bad_input("on_token is NULL");
    const Session::Call call(*given(session, "session").session, "generate");
    Generation generation = started(session, prompts, count, options);
    for (const std::vector<l4_token>* chosen = &generation.step(call); !chosen->empty();
         chosen = &generation.step(call)) {
      for (const l4_token& token : *chosen) {
        if (on_token(user, &token) != L4_CONTINUE) generation.stop(token.row);
      }
    }
  });
}
