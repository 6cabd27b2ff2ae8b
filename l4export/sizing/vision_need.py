"""What seeing images takes: the bytes of a vision tower, and the tokens of an image.

    weights  = bytes of the tower's data files
    working  = l4export.engine.tower_memory, for a call with 17 tiles
    features = 17 * r * W * bytes of the decoder's float type        of one image, kept for its prompt

r is the rows of features that a tile has, and W the decoder's width. A GPU computes the tower of an `ort-cuda` engine;
the rows of a prefill call that lie there are fewer than the activations of one layer, which are counted.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from l4export.engine.tower_memory import cpu_tower_working, gpu_tower_working
from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.graph.dtypes import FLOATS
from l4export.model.tensors import vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.sizing.engine_size import tower_data

__all__ = ["VisionNeed", "image_tokens", "vision_facts", "vision_need"]


@dataclass(frozen=True)
class VisionNeed:
    """The bytes that a vision tower of float type `dtype` takes beside the decoder."""

    dtype: str
    weights: int
    working: int
    features: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.working + self.features

    def to_dict(self) -> dict[str, Any]:
        """The need for a JSON document."""
        return {
            "dtype": self.dtype,
            "weights_bytes": self.weights,
            "working_bytes": self.working,
            "features_bytes": self.features,
        }


@functools.lru_cache(maxsize=16)
def vision_need(config: VisionConfig, width: int, target: str, dtype: str, decoder_dtype: str) -> VisionNeed:
    """What an engine's tower takes by the formula above, for a decoder of `width` channels in `decoder_dtype`."""
    weights, tiles = tower_data(config, width, target, dtype, decoder_dtype), TILES_PER_CALL[-1]
    working = (gpu_tower_working if target == "ort-cuda" else cpu_tower_working)(config, width, dtype, weights, tiles)
    features = tiles * config.rows_per_tile * width * FLOATS[decoder_dtype].numpy().itemsize
    return VisionNeed(dtype, weights, working, features)


def image_tokens(config: VisionConfig, tiles: int) -> int:
    """The tokens of a prompt that an image of so many tiles takes.

    They are the rows of every tile; a token before the last tile, which is the whole image, and a separator after every
    other; and one at either end.
    """
    return tiles * (config.rows_per_tile + 1) + 2


def vision_facts(config: VisionConfig, width: int) -> dict[str, Any]:
    """What a JSON document says of a tower for a decoder of `width` channels, whatever the combination."""
    return {
        "parameters": sum(map(math.prod, vision_tensors(config, width).values())),
        "rows_of_a_tile": config.rows_per_tile,
        "tokens_of_tiles": {str(tiles): image_tokens(config, tiles) for tiles in TILES_PER_CALL},
    }
