// What the C++ wrapper gives, printed for the test: ids of a range, of a callback, of a batch; text; errors.
#include <cstdio>
#include <stdexcept>
#include <string>

#include "l4export.hpp"

int main(int, char** arguments) {
  const l4export::Engine engine(arguments[1], {arguments[2], "cpu", 1, false});
  const l4export::Tokenizer tokenizer(arguments[1]);
  const l4export::Ids prompt = tokenizer.encode("In the beginning");

  l4export::GenerateOptions options;
  options.max_new_tokens = 12;
  options.tokenizer = &tokenizer;
  options.logprobs = 1;
  l4export::Session session(engine);
  l4export::Ids said;
  std::string text;
  for (const l4export::Token& token : session.generate(prompt, options)) {
    said.push_back(token.id);
    text += token.text;
    if (token.top_count != 1) return 1;
  }
  for (const std::int32_t id : said) std::printf("%d ", id);
  std::printf("\n%s\n%s\n", text.c_str(), tokenizer.decode(said).c_str());
  if (session.token_ids().size() != prompt.size() + said.size() - 1) return 2;

  // one Sampling for all rows, and one for each
  l4export::Sampling warm;
  warm.temperature = 1;
  warm.seed = 7;
  const auto each = l4export::sampling_of_rows(warm, 2);
  l4export::Session rows(engine, {2, 64, {}});
  l4export::Ids answers[2];
  rows.generate({{prompt, each[0]}, {prompt, each[1]}}, options, [&](const l4export::Token& token) {
    answers[token.row].push_back(token.id);
    return true;
  });
  for (const auto& answer : answers) {
    for (const std::int32_t id : answer) std::printf("%d ", id);
    std::printf("\n");
  }

  // exceptions of callbacks and processors come out as they are
  try {
    session.reset();
    session.generate({{prompt}}, options, [](const l4export::Token&) -> bool { throw std::runtime_error("mine"); });
    return 3;
  } catch (const std::runtime_error& error) {
    if (error.what() != std::string("mine")) return 4;
  }
  warm.processor = [](const std::int32_t*, std::size_t, float*, std::size_t) { throw std::runtime_error("processor"); };
  try {
    session.reset();
    session.generate(prompt, options, warm).step();
    return 5;
  } catch (const std::runtime_error& error) {
    if (error.what() != std::string("processor")) return 6;
  }
  try {
    l4export::Engine nowhere("/nowhere");
    return 7;
  } catch (const l4export::Error& error) {
    std::printf("%d\n", error.status());
  }
}
