"""Pictures into tiles: what `Llama4ImageProcessor` of transformers makes of them, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.arguments import a_path, a_whole_number, is_sequence
from l4export.runtimes.images.decoding import Frame, ImageSource, decode
from l4export.runtimes.images.settings import ImageSettings, read_settings
from l4export.runtimes.images.tiling import Grid, choose_grid, cut, tiles_of

__all__ = ["ImageProcessor", "ProcessedImages"]


@dataclass(frozen=True, eq=False)
class ProcessedImages:
    """Some images as the vision tower takes them.

    Attributes:
        tiles: float32 [tiles, 3, T, T] of all images in their order, with values that bfloat16 has too.
        grids: Rows and columns of each image's tiles, its global tile not counted.
        digests: The SHA-256 of each image's tiles in hexadecimal digits; equal ones have equal features.
        rows_of_a_tile: Feature rows of a tile, which is its number of `<|patch|>` tokens.
    """

    tiles: NDArray[np.float32]
    grids: tuple[Grid, ...]
    digests: tuple[str, ...]
    rows_of_a_tile: int

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def tile_counts(self) -> tuple[int, ...]:
        """Tiles of each image, global ones too."""
        return tuple(map(tiles_of, self.grids))

    @property
    def feature_rows(self) -> tuple[int, ...]:
        """Feature rows of each image, which is its number of `<|patch|>` tokens."""
        return tuple(count * self.rows_of_a_tile for count in self.tile_counts)

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Tokens of a prompt that each image takes: features, separators, start, end and `<|image|>`."""
        separators = (rows * columns if rows * columns > 1 else 0 for rows, columns in self.grids)
        return tuple(rows + count + 3 for rows, count in zip(self.feature_rows, separators, strict=True))

    def tiles_of(self, index: int) -> NDArray[np.float32]:
        """The tiles of one image: a view, float32 [tiles, 3, T, T]."""
        ends = np.cumsum(self.tile_counts)
        return self.tiles[ends[index] - self.tile_counts[index] : ends[index]]

    def part(self, start: int, stop: int) -> ProcessedImages:
        """The images from number `start` to `stop` - 1; their tiles are a view."""
        first, last = sum(self.tile_counts[:start]), sum(self.tile_counts[:stop])
        grids, digests = self.grids[start:stop], self.digests[start:stop]
        return ProcessedImages(self.tiles[first:last], grids, digests, self.rows_of_a_tile)


class ImageProcessor:
    """Makes tiles of images with the settings of one checkpoint.

    Args:
        settings: How; None: as Llama 4 was released.
    """

    def __init__(self, settings: ImageSettings | None = None) -> None:
        self.settings = settings or ImageSettings()

    @classmethod
    def open(cls, directory: str | Path) -> ImageProcessor:
        """The processor of a checkpoint or an engine.

        Raises:
            InputError: the directory has no settings for images, or such as are impossible or not implemented.
            StorageError: a file cannot be read.
        """
        return cls(read_settings(a_path(directory, "directory")))

    def __call__(self, images: Sequence[ImageSource | Frame], max_tiles: int | None = None) -> ProcessedImages:
        """Decode, resize and cut images, and normalise their pixels.

        Args:
            images: Each a path, the bytes of a file, a PIL image, an array uint8 [H, W, 3], or a frame of a video.
            max_tiles: The most tiles into which an image is cut, beside its global one; None: as the checkpoint says
                for images, and one for a frame.

        Raises:
            InputError: something that is no image, is too large, or has no 8-bit colours.
            EnvironmentLacks: the package Pillow is missing, which arrays do not need.
            StorageError: a file cannot be read.
        """
        _check_sequence(images)
        if max_tiles is not None:
            max_tiles = a_whole_number(max_tiles, "max_tiles", 1, self.settings.most_tiles)
        made = [self._one(image, f"image {number}", max_tiles) for number, image in enumerate(images, 1)]
        grids, tiles, digests = zip(*made, strict=True) if made else ((), (), ())
        return ProcessedImages(self._joined(tiles), grids, digests, self.settings.rows_of_a_tile)

    def _one(self, image: ImageSource | Frame, name: str, max_tiles: int | None) -> tuple[Grid, NDArray[np.uint8], str]:
        """Grid, tiles as uint8 [tiles, 3, T, T], and digest of an image."""
        settings = self.settings
        if max_tiles is None:
            max_tiles = 1 if isinstance(image, Frame) else settings.max_tiles
        pixels = decode(image.image if isinstance(image, Frame) else image, name)
        height, width, _ = pixels.shape
        grid = choose_grid(height, width, settings.tile, max_tiles, settings.fill_canvas)
        tiles = cut(np.ascontiguousarray(pixels.transpose(2, 0, 1)), grid, settings.tile, settings.fill_canvas)
        digest = hashlib.sha256(repr((grid, tiles.shape)).encode())
        digest.update(self._values.tobytes())
        digest.update(np.ascontiguousarray(tiles).data)
        return grid, tiles, digest.hexdigest()

    def _joined(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The tiles of all images with normalised values: float32 [tiles, 3, T, T]."""
        side = self.settings.tile
        joined = np.empty((sum(map(len, images)), 3, side, side), np.float32)
        start = 0
        for tiles in images:
            for channel, values in enumerate(self._values):
                joined[start : start + len(tiles), channel] = values[tiles[:, channel]]
            start += len(tiles)
        return joined

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        """What becomes of each 8-bit value in each channel, float32 [3, 256], each step in bfloat16 as there."""
        settings = self.settings
        rescaled = _bfloat16(np.arange(256, dtype=np.float32) * np.float32(settings.rescale_factor))
        mean, std = (_bfloat16(np.array(three, np.float32)[:, None]) for three in (settings.mean, settings.std))
        return _bfloat16(_bfloat16(rescaled - mean) / std)


def _check_sequence(images: object) -> None:
    if not is_sequence(images) or isinstance(images, np.ndarray):
        raise InputError(f"images: must be a sequence of images, not {type(images).__name__}")


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite values rounded to the nearest that bfloat16 has, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
