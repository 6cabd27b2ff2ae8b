// Images as tiles: which grid suits a size, what an image is resized to, and the tiles that are cut from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "images/resize.hpp"

namespace l4::images {

// Rows and columns of tiles.
struct Grid {
  std::int64_t rows = 1, columns = 1;
  std::int64_t cells() const { return rows * columns; }
  // Those of the grid, and where they are several the global one.
  std::int64_t tiles() const { return cells() + (cells() > 1); }
};

struct Size {
  std::int64_t height, width;
};

// The grid on which an image loses least and is padded least (`get_best_fit` of transformers): one on which it need not
// shrink, and of these the smallest, or with `fill_canvas` the largest; where it must shrink on all of them, the one on
// which it shrinks least. Everything is computed in float32, as there.
Grid choose_grid(Size image, std::int64_t tile, std::int64_t max_tiles, bool fill_canvas);

// Height and width of an image on its page: all of it, enlarged to one tile's side at the most.
Size fitted(Size image, Grid grid, std::int64_t tile, bool fill_canvas);

// The tiles of an image, uint8 [tiles, 3, tile, tile]: those of the grid in row-major order, black where the image does
// not reach, and where there are several the whole image last, its proportions not kept.
std::vector<std::uint8_t> cut(const Picture& picture, Grid grid, std::int64_t tile, bool fill_canvas);

}  // namespace l4::images
