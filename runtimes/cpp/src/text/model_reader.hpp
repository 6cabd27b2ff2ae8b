// The part "model" of tokenizer.json: a vocabulary and its merges, read in a stream.
#pragma once

#include "base/json.hpp"
#include "text/bpe.hpp"

namespace l4::text {

// Everything but the splitter. Raises Error (L4_BAD_INPUT) for what is no JSON, and Refusal.
Bpe read_model(json::Reader& reader);

}  // namespace l4::text
