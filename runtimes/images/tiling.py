"""Images as tiles: which grid suits a size, what an image is resized to, and the tiles that are cut from it."""

from __future__ import annotations

from functools import lru_cache
from math import floor

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.images.resize import resize

__all__ = ["Grid", "choose_grid", "cut", "fitted", "tiles_of"]

Grid = tuple[int, int]
"""Rows and columns of tiles."""


def tiles_of(grid: Grid) -> int:
    """How many tiles an image of this grid has: those of the grid, and where they are several the global one."""
    cells = grid[0] * grid[1]
    return cells + (cells > 1)


def choose_grid(height: int, width: int, tile: int, max_tiles: int, fill_canvas: bool = False) -> Grid:
    """The grid on which an image loses least and is padded least (`get_best_fit` of transformers).

    It is one on which the image need not shrink, and of these the smallest, or with `fill_canvas` the largest; where it
    must shrink on all of them, the one on which it shrinks least. Everything is computed in float32, as there.
    """
    rows, columns = _grids(max_tiles).T
    scales = [np.float32(tile) * axis.astype(np.float32) for axis in (rows, columns)]
    scale = np.minimum(scales[0] / np.float32(height), scales[1] / np.float32(width))
    enough = scale >= 1
    best = scale[enough].min() if enough.any() and not fill_canvas else scale.max()
    fitting = np.flatnonzero(scale == best)
    chosen = fitting[np.argmin((rows * columns)[fitting])]
    return int(rows[chosen]), int(columns[chosen])


def cut(planes: NDArray[np.uint8], grid: Grid, tile: int, fill_canvas: bool = False) -> NDArray[np.uint8]:
    """Cut an image into tiles.

    Args:
        planes: uint8 [3, H, W].
        grid: Rows and columns.
        tile: Side of a tile.
        fill_canvas: Whether a small image is enlarged beyond one tile's side.

    Returns:
        uint8 [tiles, 3, tile, tile]: those of the grid in row-major order, black where the image does not reach, and
        where there are several the whole image last, its proportions not kept.
    """
    (rows, columns), (_, height, width) = grid, planes.shape
    page = np.zeros((3, rows * tile, columns * tile), np.uint8)
    new_height, new_width = fitted(height, width, grid, tile, fill_canvas)
    page[:, :new_height, :new_width] = resize(planes, new_height, new_width)
    cells = page.reshape(3, rows, tile, columns, tile).transpose(1, 3, 0, 2, 4).reshape(-1, 3, tile, tile)
    return np.concatenate([cells, resize(planes, tile, tile)[None]]) if len(cells) > 1 else cells


def fitted(height: int, width: int, grid: Grid, tile: int, fill_canvas: bool = False) -> tuple[int, int]:
    """Height and width of an image on its page: all of it, enlarged to one tile's side at the most.

    transformers computes the scale of a side in float32 where the page limits it, and in float64 elsewhere
    (`get_max_res_without_distortion`, to which it gives tensors and integers). Sizes depend on it.
    """
    page = grid[0] * tile, grid[1] * tile
    wanted = page if fill_canvas else (max(height, tile), max(width, tile))
    kinds = [np.float32 if fill_canvas or most < want else np.float64 for most, want in zip(page, wanted, strict=True)]
    most_height, most_width = np.minimum(page, wanted).tolist()
    by_height, by_width = kinds[0](most_height) / kinds[0](height), kinds[1](most_width) / kinds[1](width)
    compared = np.float32 if np.float32 in kinds else np.float64
    if compared(by_width) < compared(by_height):
        return max(min(floor(kinds[1](height) * by_width), most_height), 1), most_width
    return most_height, max(min(floor(kinds[0](width) * by_height), most_width), 1)


@lru_cache(maxsize=16)
def _grids(max_tiles: int) -> NDArray[np.int64]:
    """All grids of at most so many tiles: int64 [grids, 2]."""
    return np.array([(a, b) for a in range(1, max_tiles + 1) for b in range(1, max_tiles // a + 1)])
