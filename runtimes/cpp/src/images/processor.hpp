// Pictures into tiles: what `Llama4ImageProcessor` of transformers makes of them, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "images/settings.hpp"
#include "images/tiling.hpp"

namespace l4::images {

struct ProcessedImage {
  Grid grid;                 // its global tile not counted
  std::string digest;        // SHA-256 of its tiles in hexadecimal digits; equal ones have equal features
  std::size_t first_tile;    // among those of all images
  std::size_t tile_count;    // global one too
  std::size_t feature_rows;  // which is its number of <|patch|> tokens
  std::size_t token_count;   // of a prompt: features, separators, start, end and <|image|>
};

// Some images as the vision tower takes them.
struct ProcessedImages {
  std::vector<float> tiles;    // [tiles, 3, side, side] of all images in their order, values that bfloat16 has too
  std::size_t side;            // height and width of a tile
  std::size_t rows_of_a_tile;  // feature rows
  std::vector<ProcessedImage> images;

  std::size_t values_of_a_tile() const { return 3 * side * side; }
  const float* tiles_of(std::size_t image) const {
    return tiles.data() + images[image].first_tile * values_of_a_tile();
  }
};

// Resize and cut pictures, and normalise their pixels. `max_tiles`: into which each is cut at the most, beside its
// global one; 0: as the settings say. Raises Error (L4_BAD_INPUT): a picture without pixels or too large, or impossible
// max_tiles.
ProcessedImages process(const Settings& settings, const std::vector<Picture>& pictures, std::int64_t max_tiles);

}  // namespace l4::images
