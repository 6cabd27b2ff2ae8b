// The decoder calls of one append: as few as are exact.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cache/chunks.hpp"
#include "cache/kv_cache.hpp"
#include "engine/manifest.hpp"
#include "session/cancellation.hpp"
#include "session/feature_rows.hpp"
#include "session/session_state.hpp"

namespace l4 {

// What the engine and the session allow.
struct FeedingLimits {
  std::int64_t piece;     // tokens of a row that one call may take
  std::int64_t capacity;  // tokens that a row can hold
  std::int64_t context;   // positions that there are
  std::int64_t vocab;     // token ids that there are
  bool together;          // whether one call takes several tokens of several rows, where the cache is empty
};

// The decoder's input of features: one row for each image token of the call.
struct FeatureInput {
  std::int64_t token;  // the id of image tokens
  std::int64_t width;
  ElementType type;

  // An engine's; none where it sees no images.
  static std::optional<FeatureInput> of(const engine::Manifest& manifest);
};

// New tokens of every row on their way through the decoder. `lengths` and `chunks` are this object's own: the session
// takes them over when all calls have succeeded. One object serves all appends of a session.
class Feeding {
 public:
  Feeding(KVCache& cache, const FeedingLimits& limits, Chunks chunks, std::optional<FeatureInput> input);

  const std::vector<std::int64_t>& lengths() const { return lengths_; }
  const Chunks& chunks() const { return chunks_; }

  void begin(const SessionState& state);  // from here on

  // Floats that the logits of these rows take.
  std::size_t room(const std::vector<std::vector<std::int64_t>>& rows, bool last_only) const;

  // Feed the rows together where the decoder can, else row by row. `logits` gets [rows, positions, vocab],
  // NaN where there is no token. `features` has a row for every image token; NULL: those are taken by their embedding.
  void feed(const std::vector<std::vector<std::int64_t>>& rows, bool last_only,
            std::vector<FeatureRows>* features, const Cancellation& cancellation, float* logits);

 private:
  using Rows = std::vector<std::vector<std::int64_t>>;

  void one_row_at_a_time(const Rows& rows, bool last_only, std::int64_t width, float* logits);
  bool all_have_room() const;
  void step(const Rows& rows, float* logits);
  void first_piece(const Rows& rows, bool last_only, std::int64_t width, float* logits);
  std::int64_t at_most(std::size_t row) const;
  void run(std::optional<std::size_t> row, const std::int64_t* ids, std::int64_t tokens, bool last_only, float* logits);
  void take_features(std::size_t first, std::size_t rows, const std::int64_t* ids, std::int64_t tokens);

  KVCache& cache_;
  FeedingLimits limits_;
  Chunks chunks_;
  std::optional<FeatureInput> input_;
  std::int64_t filler_;  // stands where a row has no token; an image token would take another row's features
  std::vector<std::int64_t> lengths_, done_;
  std::vector<std::int64_t> ids_, counts_;  // of a call
  std::vector<std::byte> features_;         // of a call
  std::vector<FeatureRows>* waiting_ = nullptr;
  const Cancellation* cancellation_ = nullptr;
};

}  // namespace l4
