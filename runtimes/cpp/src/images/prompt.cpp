#include "images/prompt.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"

namespace l4::images {
namespace {

// The tokens of an image: tiles by rows where there are several, and the global or only tile.
void append_block(std::vector<std::int32_t>& ids, Grid grid, std::size_t rows_of_a_tile, const ImageTokens& tokens) {
  ids.push_back(tokens.start);
  for (std::int64_t row = 0; grid.cells() > 1 && row < grid.rows; ++row) {
    for (std::int64_t column = 0; column < grid.columns; ++column) {
      ids.insert(ids.end(), rows_of_a_tile, tokens.patch);
      ids.push_back(column + 1 < grid.columns ? tokens.column : tokens.row);
    }
  }
  ids.push_back(tokens.image);
  ids.insert(ids.end(), rows_of_a_tile, tokens.patch);
  ids.push_back(tokens.end);
}

}  // namespace

ImageTokens ImageTokens::of(const std::function<std::int32_t(const char*)>& id_of) {
  const auto found = [&](const char* name) {
    const std::int32_t id = id_of(name);
    if (id >= 0) return id;
    throw bad_input(std::string("tokenizer: has no token ") + name +
                    ", which images need; copy it from the checkpoint");
  };
  return {found("<|image|>"), found("<|image_start|>"),      found("<|image_end|>"),
          found("<|patch|>"), found("<|tile_x_separator|>"), found("<|tile_y_separator|>")};
}

std::vector<std::int32_t> expand(const std::int32_t* ids, std::size_t count, const std::vector<Grid>& grids,
                                 std::size_t rows_of_a_tile, const ImageTokens& tokens) {
  const std::pair<std::int32_t, const char*> within_images[] = {{tokens.start, "<|image_start|>"},
                                                                {tokens.end, "<|image_end|>"},
                                                                {tokens.patch, "<|patch|>"},
                                                                {tokens.column, "<|tile_x_separator|>"},
                                                                {tokens.row, "<|tile_y_separator|>"}};
  for (std::size_t i = 0; i < count; ++i) {
    for (const auto& [token, name] : within_images) {
      if (ids[i] != token) continue;
      throw bad_input(std::string("prompt: spells ") + name + ", which stands within images alone; leave it out");
    }
  }
  const auto placeholders = static_cast<std::size_t>(std::count(ids, ids + count, tokens.image));
  if (placeholders != grids.size()) {
    throw bad_input("prompt: has " + std::to_string(placeholders) + " placeholders <|image|> for " +
                    std::to_string(grids.size()) + " images; give as many of both");
  }
  std::vector<std::int32_t> expanded;
  auto grid = grids.begin();
  for (std::size_t i = 0; i < count; ++i) {
    if (ids[i] == tokens.image) {
      append_block(expanded, *grid++, rows_of_a_tile, tokens);
    } else {
      expanded.push_back(ids[i]);
    }
  }
  return expanded;
}

}  // namespace l4::images
