// Prompts with images: each placeholder in the ids becomes the tokens of its image.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "images/tiling.hpp"

namespace l4::images {

// The ids of the tokens of which images consist in a prompt.
struct ImageTokens {
  std::int32_t image;   // <|image|>: a placeholder in a prompt as it is written, and what precedes an image's last tile
  std::int32_t start;   // <|image_start|>
  std::int32_t end;     // <|image_end|>
  std::int32_t patch;   // <|patch|>, where the decoder takes a feature row
  std::int32_t column;  // <|tile_x_separator|>, between two tiles of a row
  std::int32_t row;     // <|tile_y_separator|>, after every row of tiles

  // Those of a tokenizer. `id_of` gives the id of a token, -1 where there is none, which is refused (L4_BAD_INPUT).
  static ImageTokens of(const std::function<std::int32_t(const char*)>& id_of);
};

// Replace each placeholder of a prompt by the tokens of its image, in their order, as `Llama4Processor` does. Raises
// Error (L4_BAD_INPUT): more or fewer placeholders than images, or a token in the prompt that only images have.
std::vector<std::int32_t> expand(const std::int32_t* ids, std::size_t count, const std::vector<Grid>& grids,
                                 std::size_t rows_of_a_tile, const ImageTokens& tokens);

}  // namespace l4::images
