"""What seeing images takes: the bytes of a vision tower, and the tokens of an image.

With n = 17 tiles in a call, D and I the tower's widths, N its patches of a tile and a class token, r rows of features a
tile, P the projector's width and W the decoder's:

    weights  = bytes of the tower's data files
    working  = copies + n * 4 * (3 side^2 + N (k D + 3 I) + r (I + 2 P + 2 W))     k is 8, of a tower in float16 10
    copies   = weights, of a tower in float16
    features = n * r * W * bytes of the decoder's float type                       of one image, kept for its prompt

ONNX Runtime's CPU provider multiplies float16 in float32: it keeps such weights, twice the bytes of their files, and
casts what comes between. `MultiHeadAttention` keeps no scores (unfused attention would take 4 * heads * N^2 more, 21 MB
a tile as released). Layers take turns. At the released width, which is 80 MB a tile, two layers took 94 % of all this
with 17 tiles, in either type.

The CPU computes the tower of an `ort-cuda` engine, so its bytes are this machine's and not the GPU's. The rows of a
prefill call that lie on the GPU are fewer than the activations of one layer, which are counted.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from l4export.engine.vision_interface import TILES_PER_CALL
from l4export.graph.dtypes import FLOATS
from l4export.model.tensors import vision_tensors
from l4export.model.vision_config import VisionConfig
from l4export.sizing.engine_size import tower_data

__all__ = ["VisionNeed", "image_tokens", "vision_facts", "vision_need"]

_FLOAT = 4
"""Bytes of a float32, in which the CPU provider computes either type."""


@dataclass(frozen=True)
class VisionNeed:
    """The bytes that a vision tower of float type `dtype` takes beside the decoder."""

    dtype: str
    weights: int
    working: int
    features: int
    on_device: bool
    """Whether the device that is planned for holds them; else the CPU beside it does."""

    @property
    def total(self) -> int:
        """All of it, wherever it is."""
        return self.weights + self.working + self.features

    @property
    def device_bytes(self) -> int:
        """What the device holds of it."""
        return self.total if self.on_device else 0

    def to_dict(self) -> dict[str, Any]:
        """The need for a JSON document."""
        return {
            "dtype": self.dtype,
            "weights_bytes": self.weights,
            "working_bytes": self.working,
            "features_bytes": self.features,
            "on_device": self.on_device,
        }


@functools.lru_cache(maxsize=16)
def vision_need(config: VisionConfig, width: int, target: str, dtype: str, decoder_dtype: str) -> VisionNeed:
    """What an engine's tower takes by the formula above, for a decoder of `width` channels in `decoder_dtype`."""
    weights = tower_data(config, width, target, dtype, decoder_dtype)
    tiles, rows, inner = TILES_PER_CALL[-1], config.rows_per_tile, config.intermediate_size
    floats = 3 * config.image_size**2
    floats += (config.grid**2 + 1) * ((10 if dtype == "fp16" else 8) * config.hidden_size + 3 * inner)
    floats += rows * (inner + 2 * config.projector_size + 2 * width)
    copies = weights if dtype == "fp16" else 0
    features = tiles * rows * width * FLOATS[decoder_dtype].numpy().itemsize
    return VisionNeed(dtype, weights, copies + tiles * _FLOAT * floats, features, on_device=target != "ort-cuda")


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
