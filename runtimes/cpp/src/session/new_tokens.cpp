#include "session/new_tokens.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace l4 {
namespace {

std::string row_named(std::size_t row) { return "row " + std::to_string(row) + ": "; }

void check_row(std::size_t row, const std::vector<std::int64_t>& ids, const SessionState& state,
               const engine::Manifest& manifest) {
  const std::int64_t vocab = manifest.model.vocab_size, count = static_cast<std::int64_t>(ids.size());
  const auto bad = std::find_if(ids.begin(), ids.end(), [&](std::int64_t id) { return id < 0 || id >= vocab; });
  if (bad != ids.end()) {
    throw bad_input(row_named(row) + "token id " + std::to_string(*bad) + " is outside the vocabulary (0 to " +
                    std::to_string(vocab - 1) + ")");
  }
  if (state.lengths[row] + count > state.capacity) {
    throw bad_input(row_named(row) + std::to_string(state.lengths[row]) + " + " + std::to_string(count) +
                    " tokens are more than the session's capacity of " + std::to_string(state.capacity) +
                    "; shorten the prompt or build with a larger --max-context");
  }
  if (state.end(row) + count > manifest.max_context) {
    throw bad_input(row_named(row) + std::to_string(count) + " tokens from position " + std::to_string(state.end(row)) +
                    " on go beyond the engine's context of " + std::to_string(manifest.max_context) +
                    "; shorten the prompt or build with a larger --max-context");
  }
}

}  // namespace

void NewTokens::clear() {
  for (auto& ids : rows_) ids.clear();
  for (Images& each : images_) each.reset();
  for (auto& each : placed_) each.clear();
}

void NewTokens::set(std::size_t row, const std::int32_t* ids, std::size_t count, Images images) {
  rows_[row].assign(ids, ids + count);
  images_[row] = images && !images->images.empty() ? std::move(images) : nullptr;
}

bool NewTokens::any_images() const {
  return std::any_of(images_.begin(), images_.end(), [](const Images& each) { return each != nullptr; });
}

void NewTokens::check_tokens(const SessionState& state, const engine::Manifest& manifest) const {
  if (rows_.size() != state.rows()) {
    throw bad_input(std::to_string(rows_.size()) + " rows of token ids for a session of " +
                    std::to_string(state.rows()) + ": give one sequence a row");
  }
  if (std::all_of(rows_.begin(), rows_.end(), [](const auto& ids) { return ids.empty(); })) {
    throw bad_input("no token ids to append: give at least one");
  }
  for (std::size_t row = 0; row < rows_.size(); ++row) check_row(row, rows_[row], state, manifest);
}

void NewTokens::check_images(const SessionState& state, const engine::VisionConfig* vision) {
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    if (vision != nullptr) {
      placed_[row] = places(row, state.lengths[row], *vision);
    } else if (images_[row]) {
      throw bad_input(row_named(row) + "has images, and this engine sees none; build one from a checkpoint that does");
    }
  }
}

std::vector<PlacedImage> NewTokens::places(std::size_t row, std::int64_t length,
                                           const engine::VisionConfig& vision) const {
  const std::vector<std::int64_t>& ids = rows_[row];
  const auto tokens = static_cast<std::size_t>(std::count(ids.begin(), ids.end(), vision.image_token_id));
  const std::string has = row_named(row) + "has " + std::to_string(tokens) + " image tokens (" +
                          std::to_string(vision.image_token_id) + ") and ";
  if (!images_[row]) {
    if (tokens != 0) throw bad_input(has + "no images; give both or none");
    return {};
  }
  const images::ProcessedImages& images = *images_[row];
  if (static_cast<std::int64_t>(images.side) != vision.image_size ||
      static_cast<std::int64_t>(images.rows_of_a_tile) != vision.rows_per_tile) {
    throw bad_input(row_named(row) + "its images have tiles of " + std::to_string(images.side) + " pixels and " +
                    std::to_string(images.rows_of_a_tile) + " rows, and this engine takes " +
                    std::to_string(vision.image_size) + " and " + std::to_string(vision.rows_per_tile) +
                    "; make them with the settings of the engine's directory");
  }
  std::size_t due = 0;
  for (const images::ProcessedImage& image : images.images) due += image.feature_rows;
  if (tokens != due) {
    throw bad_input(has + std::to_string(images.images.size()) + " images of " + std::to_string(due) +
                    " feature rows; expand the prompt with the grids of these images");
  }
  std::vector<PlacedImage> placed;
  auto at = ids.begin();
  for (const images::ProcessedImage& image : images.images) {
    PlacedImage place{0, 0, image.digest};
    for (std::size_t seen = 0; seen < image.feature_rows; ++seen) {
      at = std::find(at, ids.end(), vision.image_token_id);
      if (seen == 0) place.start = length + (at - ids.begin());
      place.stop = length + (++at - ids.begin());
    }
    placed.push_back(std::move(place));
  }
  return placed;
}

}  // namespace l4
