// What a checkpoint says about its images, from the files that transformers 4 and 5 write.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/json.hpp"

namespace l4::images {

// How images are made into tiles. The defaults are those of Llama 4 as released, and of transformers.
struct Settings {
  std::int64_t tile = 336;                       // height and width of a tile in pixels (`size`)
  std::int64_t max_tiles = 16;                   // into which an image is cut, beside the global one (`max_patches`)
  std::array<double, 3> mean = {0.5, 0.5, 0.5};  // subtracted from each channel after rescaling (`image_mean`)
  std::array<double, 3> std = {0.5, 0.5, 0.5};   // by which it is then divided (`image_std`)
  double rescale_factor = 1.0 / 255;             // with which values of 0 to 255 are multiplied first
  bool fill_canvas = false;  // small images are enlarged as far as tiles go (`resize_to_max_canvas`)
  std::int64_t patch = 14;   // height and width of a patch in pixels (`patch_size`)
  std::int64_t shuffle = 2;  // patches that become one feature row, in each direction

  // Feature rows of a tile, which is its number of <|patch|> tokens: 144 in Llama 4.
  std::int64_t rows_of_a_tile() const { return (tile / patch) * (tile / patch) / (shuffle * shuffle); }
  // The most tiles that can be asked for, whatever the checkpoint says.
  std::int64_t most_tiles() const;
};

// The settings of a checkpoint or an engine. Raises Error: L4_BAD_INPUT where no file has them, one is broken, or a
// setting is impossible or not implemented; L4_STORAGE where a file cannot be read.
Settings read_settings(const std::string& directory);

// The same from two objects: the settings of the image processor, and processor_config.json.
Settings settings_of(const json::Value& image, const json::Value& processor);

}  // namespace l4::images
