"""What a vision tower is called with, on any runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.errors import InputError
from l4export.model.vision_config import VisionConfig
from l4export.runtimes.arguments import shown

__all__ = ["tile_calls"]


def tile_calls(directory: Path, vision: VisionConfig | None, tiles: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The tiles of each call, a few at a time, so that memory does not grow with their number.

    Raises:
        InputError: the engine in `directory` has no tower, or the array is no float32 [1 or more, 3, T, T].
    """
    if vision is None:
        raise InputError(f"{directory}: sees no images; build it from a checkpoint with a vision tower")
    shape = (3, vision.image_size, vision.image_size)
    if not isinstance(tiles, np.ndarray) or tiles.ndim != 4 or tiles.shape[1:] != shape or not len(tiles):
        told = list(tiles.shape) if isinstance(tiles, np.ndarray) else shown(tiles)
        raise InputError(f"tiles are {told}: give an array of shape [1 or more, {', '.join(map(str, shape))}]")
    if tiles.dtype != np.float32 or not np.isfinite(tiles).all():
        raise InputError(f"tiles are of {tiles.dtype}, or not all finite: give finite float32 pixel values")
    at_a_time = TILES_PER_CALL[-1]
    return [np.ascontiguousarray(tiles[start : start + at_a_time]) for start in range(0, len(tiles), at_a_time)]
