#include "images/tiling.hpp"

#include <algorithm>
#include <cmath>

namespace l4::images {

Grid choose_grid(Size image, std::int64_t tile, std::int64_t max_tiles, bool fill_canvas) {
  const auto scale_of = [&](Grid grid) {
    const float height = static_cast<float>(tile) * static_cast<float>(grid.rows) / static_cast<float>(image.height);
    const float width = static_cast<float>(tile) * static_cast<float>(grid.columns) / static_cast<float>(image.width);
    return std::min(height, width);
  };
  // whether `scale` suits better than `best`: from 1 on the smallest, unless the canvas is filled, else the largest
  const auto better = [&](float scale, float best) {
    if (fill_canvas || scale < 1 || best < 1) return scale > best;
    return scale < best;
  };
  Grid chosen{1, 1};
  float best = scale_of(chosen);
  for (std::int64_t rows = 1; rows <= max_tiles; ++rows) {
    for (std::int64_t columns = 1; columns <= max_tiles / rows; ++columns) {
      const Grid grid{rows, columns};
      const float scale = scale_of(grid);
      if (better(scale, best) || (scale == best && grid.cells() < chosen.cells())) chosen = grid, best = scale;
    }
  }
  return chosen;
}

namespace {

// One side of an image and of what it may become. transformers computes the scale of a side in float32 where the page
// limits it, and in float64 elsewhere (`get_max_res_without_distortion`, to which it gives tensors and integers). Sizes
// depend on it.
struct Side {
  std::int64_t pixels, most;
  bool single;

  Side(std::int64_t pixels, std::int64_t page, std::int64_t tile, bool fill_canvas) : pixels(pixels) {
    const std::int64_t wanted = fill_canvas ? page : std::max(pixels, tile);
    single = fill_canvas || page < wanted;
    most = std::min(page, wanted);
  }
  double scale() const {
    if (single) return static_cast<float>(most) / static_cast<float>(pixels);
    return static_cast<double>(most) / static_cast<double>(pixels);
  }
  // Pixels at the scale of the other side, whose precision counts.
  std::int64_t scaled(const Side& other) const {
    const double exact = static_cast<double>(pixels) * other.scale();
    const float rounded = static_cast<float>(pixels) * static_cast<float>(other.scale());
    const auto whole = static_cast<std::int64_t>(std::floor(other.single ? static_cast<double>(rounded) : exact));
    return std::max<std::int64_t>(std::min(whole, most), 1);
  }
};

}  // namespace

Size fitted(Size image, Grid grid, std::int64_t tile, bool fill_canvas) {
  const Side height(image.height, grid.rows * tile, tile, fill_canvas);
  const Side width(image.width, grid.columns * tile, tile, fill_canvas);
  const bool single = height.single || width.single;
  const bool width_limits =
      single ? static_cast<float>(width.scale()) < static_cast<float>(height.scale()) : width.scale() < height.scale();
  if (width_limits) return {height.scaled(width), width.most};
  return {height.most, width.scaled(height)};
}

namespace {

// Copy a square of a picture [height, width, 3] into a tile [3, side, side] of zeros, as far as the picture reaches.
void place(const Picture& picture, std::size_t top, std::size_t left, std::size_t side, std::uint8_t* tile) {
  const std::size_t bottom = std::min(top + side, picture.height), right = std::min(left + side, picture.width);
  for (std::size_t y = top; y < bottom; ++y) {
    const std::uint8_t* from = picture.rgb + (y * picture.width + left) * 3;
    std::uint8_t* to = tile + (y - top) * side;
    for (std::size_t x = left; x < right; ++x, from += 3, ++to) {
      to[0] = from[0], to[side * side] = from[1], to[2 * side * side] = from[2];
    }
  }
}

Picture resized(const Picture& picture, Size size, std::vector<std::uint8_t>& pixels) {
  const auto height = static_cast<std::size_t>(size.height), width = static_cast<std::size_t>(size.width);
  pixels = resize(picture, height, width);
  return {pixels.data(), height, width};
}

}  // namespace

std::vector<std::uint8_t> cut(const Picture& picture, Grid grid, std::int64_t tile, bool fill_canvas) {
  const Size size{static_cast<std::int64_t>(picture.height), static_cast<std::int64_t>(picture.width)};
  const auto side = static_cast<std::size_t>(tile), columns = static_cast<std::size_t>(grid.columns);
  std::vector<std::uint8_t> tiles(static_cast<std::size_t>(grid.tiles()) * 3 * side * side), pixels;
  std::uint8_t* to = tiles.data();
  const Picture page = resized(picture, fitted(size, grid, tile, fill_canvas), pixels);
  for (std::int64_t cell = 0; cell < grid.cells(); ++cell, to += 3 * side * side) {
    const auto number = static_cast<std::size_t>(cell);
    const std::size_t top = number / columns * side, left = number % columns * side;
    if (top < page.height && left < page.width) place(page, top, left, side, to);
  }
  if (grid.cells() > 1) place(resized(picture, {tile, tile}, pixels), 0, 0, side, to);
  return tiles;
}

}  // namespace l4::images
