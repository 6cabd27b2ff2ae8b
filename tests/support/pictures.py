"""Pictures of any size and mode, made of numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["MODES", "in_mode", "picture"]

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"]
"""Pillow's modes of 8 bits."""


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Noise over a slope: pixels that no rounding treats alike."""
    rng = np.random.default_rng([height, width, seed])
    slope = np.linspace(0, 200, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    noise: NDArray[np.uint8] = (slope + rng.integers(0, 56, (height, width, 3))).astype(np.uint8)
    return noise


def in_mode(mode: str, height: int, width: int) -> Image.Image:
    rng = np.random.default_rng([height, width, len(mode)])
    image = Image.fromarray(picture(height, width))
    if mode in ("LA", "RGBA", "PA"):
        image = image.convert("RGBA")
        image.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
    return image.convert(mode) if mode != "PA" else image.convert("LA").convert("PA")
