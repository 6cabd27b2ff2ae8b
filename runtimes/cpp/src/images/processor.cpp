#include "images/processor.hpp"

#include <array>
#include <cstring>
#include <string_view>

#include "base/error.hpp"
#include "storage/sha256.hpp"

namespace l4::images {
namespace {

constexpr std::size_t kMostPixels = std::size_t{1}
                                    << 26;               // of an image; a gigabyte suffices for all that is made of it
constexpr std::size_t kMostSide = std::size_t{1} << 16;  // pixels of an image in one direction

// What becomes of each 8-bit value in each channel.
using Values = std::array<std::array<float, 256>, 3>;

// A finite value rounded to the nearest that bfloat16 has, ties to even.
float bfloat16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Each step in bfloat16, as transformers computes it.
Values values_of(const Settings& settings) {
  Values values;
  for (std::size_t channel = 0; channel < 3; ++channel) {
    const float mean = bfloat16(static_cast<float>(settings.mean[channel]));
    const float std = bfloat16(static_cast<float>(settings.std[channel]));
    for (std::size_t level = 0; level < 256; ++level) {
      const float rescaled = bfloat16(static_cast<float>(level) * static_cast<float>(settings.rescale_factor));
      values[channel][level] = bfloat16(bfloat16(rescaled - mean) / std);
    }
  }
  return values;
}

void check(const Picture& picture, std::size_t number) {
  const std::size_t width = picture.width, height = picture.height;
  if (width >= 1 && width <= kMostSide && height >= 1 && height <= kMostSide && width * height <= kMostPixels) return;
  throw bad_input("image " + std::to_string(number) + ": has " + std::to_string(width) + " x " +
                  std::to_string(height) + " pixels, but a side has 1 to " + std::to_string(kMostSide) +
                  " pixels, and the whole at most " + std::to_string(kMostPixels >> 20) + " million; scale it");
}

// The digest of the Python runtime: grid and shape as Python writes tuples, the values of the levels, the levels.
std::string digest_of(Grid grid, std::size_t side, const Values& values, const std::vector<std::uint8_t>& tiles) {
  const std::string edge = std::to_string(side);
  const std::string shape = "((" + std::to_string(grid.rows) + ", " + std::to_string(grid.columns) + "), (" +
                            std::to_string(grid.tiles()) + ", 3, " + edge + ", " + edge + "))";
  const auto bytes = [](const void* data, std::size_t size) {
    return std::string_view(static_cast<const char*>(data), size);
  };
  storage::Sha256 digest;
  digest.update(shape);
  digest.update(bytes(values.data(), sizeof values));
  digest.update(bytes(tiles.data(), tiles.size()));
  return digest.hex();
}

ProcessedImage image_of(Grid grid, const ProcessedImages& before) {
  const auto tiles = static_cast<std::size_t>(grid.tiles()), cells = static_cast<std::size_t>(grid.cells());
  const std::size_t first = before.tiles.size() / before.values_of_a_tile(), rows = tiles * before.rows_of_a_tile;
  return {grid, {}, first, tiles, rows, rows + (cells > 1 ? cells : 0) + 3};
}

}  // namespace

ProcessedImages process(const Settings& settings, const std::vector<Picture>& pictures, std::int64_t max_tiles) {
  if (max_tiles < 0 || max_tiles > settings.most_tiles()) {
    throw bad_input("max_tiles is " + std::to_string(max_tiles) + ": give a whole number, 1 to " +
                    std::to_string(settings.most_tiles()));
  }
  if (max_tiles == 0) max_tiles = settings.max_tiles;
  for (std::size_t number = 0; number < pictures.size(); ++number) check(pictures[number], number + 1);
  const Values values = values_of(settings);
  ProcessedImages done;
  done.side = static_cast<std::size_t>(settings.tile);
  done.rows_of_a_tile = static_cast<std::size_t>(settings.rows_of_a_tile());
  for (const Picture& picture : pictures) {
    const Size size{static_cast<std::int64_t>(picture.height), static_cast<std::int64_t>(picture.width)};
    const Grid grid = choose_grid(size, settings.tile, max_tiles, settings.fill_canvas);
    const std::vector<std::uint8_t> tiles = cut(picture, grid, settings.tile, settings.fill_canvas);
    done.images.push_back(image_of(grid, done));
    done.images.back().digest = digest_of(grid, done.side, values, tiles);
    done.tiles.reserve(done.tiles.size() + tiles.size());
    const std::size_t plane = done.side * done.side;
    for (std::size_t start = 0; start < tiles.size(); start += plane) {
      const std::array<float, 256>& of_channel = values[start / plane % 3];
      for (std::size_t i = start; i < start + plane; ++i) done.tiles.push_back(of_channel[tiles[i]]);
    }
  }
  return done;
}

}  // namespace l4::images
