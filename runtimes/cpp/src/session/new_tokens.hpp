// What an append is given: token ids and images of every row, checked before anything is computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/manifest.hpp"
#include "images/processor.hpp"
#include "session/session_state.hpp"

namespace l4 {

using Images = std::shared_ptr<const images::ProcessedImages>;  // NULL or empty: none

// New tokens of each row of a session. One object may serve many appends, and then nothing is allocated for them.
class NewTokens {
 public:
  explicit NewTokens(std::size_t rows) : rows_(rows), images_(rows), placed_(rows) {}

  void clear();  // no row has a token
  void set(std::size_t row, const std::int32_t* ids, std::size_t count, Images images = nullptr);

  const std::vector<std::vector<std::int64_t>>& rows() const { return rows_; }
  const std::vector<Images>& images() const { return images_; }
  // Where the images will stand in each row, once they are checked; the session takes them when the tokens are fed.
  const std::vector<std::vector<PlacedImage>>& placed() const { return placed_; }
  std::vector<std::vector<PlacedImage>>& placed() { return placed_; }
  bool any_images() const;

  // Raise Error (L4_BAD_INPUT): they are no ids of tokens, are none at all, are those of another number of rows, or are
  // more than there is room for.
  void check_tokens(const SessionState& state, const engine::Manifest& manifest) const;
  // Raise Error (L4_BAD_INPUT): images where there is no tower (`vision` is NULL), or of another engine; or, with a
  // tower, image tokens in another number than that of the images' feature rows, which is 0 without images.
  void check_images(const SessionState& state, const engine::VisionConfig* vision);

 private:
  std::vector<PlacedImage> places(std::size_t row, std::int64_t length, const engine::VisionConfig& vision) const;

  std::vector<std::vector<std::int64_t>> rows_;
  std::vector<Images> images_;
  std::vector<std::vector<PlacedImage>> placed_;
};

}  // namespace l4
