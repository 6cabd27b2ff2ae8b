// What one decoder call is fed, beside the caches, and where its logits go.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "onnxruntime/element_type.hpp"
#include "onnxruntime/run_options.hpp"

namespace l4 {

// Rows of features [rows, width] for the image tokens of a call, row by row; without rows all tokens are text.
struct CallFeatures {
  const std::byte* data;  // never NULL
  std::int64_t rows, width;
  ElementType type;
};

struct Call {
  std::optional<std::size_t> row;  // that it extends; none: all of them
  std::int64_t rows, tokens;       // rows are 1 or those of the session
  const std::int64_t* ids;         // [rows, tokens], padded on the right
  const std::int64_t* counts;      // [rows], the real ones among them
  const std::int64_t* lengths;     // [rows], tokens that lie in the cache before the call
  const std::int64_t* starts;      // [rows], positions of the first of those
  std::int64_t last_only;          // 1: logits of each row's last real token only; 0: of all tokens
  std::optional<CallFeatures> features;  // none where the decoder sees no images
  const RunOptions* options;
  float* logits;  // [rows, positions(), vocab]

  std::int64_t positions() const { return last_only != 0 ? 1 : tokens; }

  // Give each input to `put(name, type, shape, rank, data)`. The mask covers the new tokens only, so that a call costs
  // no more after many; it is made in `mask`.
  template <typename Put>
  void each_input(std::vector<std::int64_t>& mask, Put&& put) const {
    static constexpr ElementType int64{"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8};
    mask.resize(static_cast<std::size_t>(rows * tokens));
    for (std::int64_t each = 0; each < rows; ++each) {
      for (std::int64_t token = 0; token < tokens; ++token) {
        mask[static_cast<std::size_t>(each * tokens + token)] = token < counts[each];
      }
    }
    const std::int64_t shape[] = {rows, tokens};
    put("input_ids", int64, shape, 2, ids);
    put("attention_mask", int64, shape, 2, mask.data());
    put("mask_start", int64, shape, 1, lengths);
    put("cache_start", int64, shape, 1, starts);
    put("logits_to_keep", int64, shape, 0, &last_only);
    if (features) {
      const std::int64_t of_features[] = {features->rows, features->width};
      put("image_features", features->type, of_features, 2, features->data);
    }
  }
};

}  // namespace l4
