/* Greedy ids through the C ABI alone, a step at a time. */
#include <stdio.h>

#include "l4export.h"

int main(int count, char** arguments) {
  l4_engine_options opening = L4_ENGINE_OPTIONS_DEFAULT;
  l4_generate_options options = L4_GENERATE_OPTIONS_DEFAULT;
  l4_engine* engine = NULL;
  l4_session* session = NULL;
  l4_generation* generation = NULL;
  const l4_token* tokens = NULL;
  const int32_t ids[] = {1, 2, 3};
  l4_prompt prompt = {sizeof(l4_prompt), ids, 3, NULL, NULL};
  size_t chosen = 0;
  if (count != 3) return 9;
  opening.onnxruntime = arguments[2];
  options.max_new_tokens = 12;
  if (l4_engine_open(arguments[1], &opening, &engine) || l4_session_create(engine, NULL, &session) ||
      l4_generation_start(session, &prompt, 1, &options, &generation)) {
    fprintf(stderr, "%s\n", l4_last_error());
    return 1;
  }
  while (l4_generation_next(generation, &tokens, &chosen) == L4_OK && chosen != 0) printf("%d ", (int)tokens[0].id);
  l4_engine_close(engine);
  l4_session_close(session);
  l4_generation_close(generation);
  return 0;
}
