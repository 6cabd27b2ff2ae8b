// The command line of l4run.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "l4export.hpp"

namespace l4run {

// What the options say. Texts are UTF-8; numbers are those that were given.
struct Options {
  std::string engine;
  std::optional<std::string> prompt, token_ids, chat, batch;  // one of them
  std::vector<std::string> images;
  std::vector<std::string> stops;
  bool raw = false, special_tokens_as_text = false;
  std::int32_t max_tiles = 0;  // 0: the checkpoint's
  std::int64_t max_new_tokens = 128;
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<std::int64_t> top_k;
  std::optional<std::uint64_t> seed;
  bool recommended_sampling = false;
  std::int64_t logprobs = -1;  // -1: none
  l4export::EngineOptions opening;
  bool stats = false, json = false;
};

// None where --help or --version has said everything. Throws l4export::Error (L4_BAD_INPUT).
std::optional<Options> parse(const std::vector<std::string>& arguments);

}  // namespace l4run
