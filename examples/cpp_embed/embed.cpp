// An engine inside a C++ program: continue a text, and print what comes as it comes.
#include <iostream>
#include <l4export.hpp>

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: embed ENGINE TEXT\n";
    return 2;
  }
  try {
    const l4export::Engine engine(arguments[1]);
    const l4export::Tokenizer tokenizer(arguments[1]);
    l4export::Session session(engine);

    l4export::GenerateOptions options;
    options.tokenizer = &tokenizer;
    options.max_new_tokens = 60;
    l4export::Sampling sampling;
    sampling.temperature = 0.7;
    sampling.top_p = 0.9;
    sampling.seed = 1;

    std::cout << arguments[2];
    for (const l4export::Token& token : session.generate(tokenizer.encode(arguments[2]), options, sampling)) {
      std::cout << token.text << std::flush;
    }
    std::cout << '\n';
  } catch (const l4export::Error& error) {
    std::cerr << "embed: " << error.what() << '\n';
    return error.status();
  }
}
