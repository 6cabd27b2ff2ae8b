// The configurations of the language model and of the vision tower, as a manifest holds them. Both are untrusted: every
// value is checked for type and range.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.hpp"

namespace l4::engine {

// What a runtime needs of the language model.
struct ModelConfig {
  std::int64_t vocab_size = 0, hidden_size = 0, num_hidden_layers = 0, num_attention_heads = 0, num_key_value_heads = 0;
  std::int64_t head_dim = 0, max_position_embeddings = 0;
  std::vector<bool> chunked_layers;                  // whose attention sees the chunk of its token alone
  std::optional<std::int64_t> attention_chunk_size;  // none: no layer's does
  std::optional<std::int64_t> bos_token_id, pad_token_id;
  std::vector<std::int64_t> eos_token_ids;
};

// What a runtime needs of the vision tower.
struct VisionConfig {
  std::int64_t image_size = 0;      // pixels along a side of a tile
  std::int64_t rows_per_tile = 0;   // rows of features, and tokens of the prompt, that a tile takes
  std::int64_t image_token_id = 0;  // stands where a row of features does
};

// Raise Error (L4_BAD_INPUT), beginning with `where`, for a field that is missing, wrong, or contradicts another.
ModelConfig read_model_config(const json::Value& raw, const std::string& where);
VisionConfig read_vision_config(const json::Value& raw, const std::string& where);

}  // namespace l4::engine
