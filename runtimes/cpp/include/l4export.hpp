// l4export.hpp - the native runtime in C++17: owners instead of handles, exceptions instead of status codes, and ranges
// of tokens. Headers alone, upon l4export.h, which says what everything means; nothing else is needed but the library.
//
//   l4export::Engine engine("engine");
//   l4export::Tokenizer tokenizer("engine");
//   l4export::Session session(engine);
//   l4export::GenerateOptions options;
//   options.tokenizer = &tokenizer;
//   for (const l4export::Token& token : session.generate(tokenizer.encode("In the beginning"), options)) {
//     std::cout << token.text << std::flush;
//   }
//
// Objects are moved, not copied. They may go in any order; but what a Generation yields, logits of an append and texts
// of a TextStream are good until the next call on the same object.
#ifndef L4EXPORT_HPP
#define L4EXPORT_HPP

#include "l4export/engine.hpp"
#include "l4export/error.hpp"
#include "l4export/generation.hpp"
#include "l4export/images.hpp"
#include "l4export/sampling.hpp"
#include "l4export/session.hpp"
#include "l4export/text.hpp"

#endif
