"""Bilinear resizing of 8-bit images with antialiasing, bit for bit as PyTorch's integer kernel on a CPU.

The kernel (`_compute_index_ranges_int16_weights` and what follows it in ATen's UpSampleKernel.cpp) works along one axis
with integer weights and rounds to 8 bits, first along the width, then along the height. Pillow's own filters round
elsewhere and differ by one level in some pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

__all__ = ["resize"]

_BLOCK = 32
"""Outputs that are computed by one dense matrix: wider ones multiply more zeros, narrower ones multiply more slowly."""

_STRIPE_VALUES = 1 << 19
"""About as many values are converted to floats at once: they stay in a core's cache."""


def resize(planes: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize an image.

    Args:
        planes: uint8 [channels, H, W]; no axis is empty.
        height: Of the result, 1 or more.
        width: Of the result, 1 or more.

    Returns:
        uint8 [channels, height, width].
    """
    channels, old_height, old_width = planes.shape
    if width != old_width:
        flat = planes.reshape(channels * old_height, old_width)
        narrowed = np.empty((len(flat), width), np.uint8)
        for block in _blocks(old_width, width):
            _narrow(flat[:, block.inputs], block, narrowed[:, block.outputs])
        planes = narrowed.reshape(channels, old_height, width)
    if height == old_height:
        return planes
    resized = np.empty((channels, height, width), np.uint8)
    for block in _blocks(old_height, height):
        for plane, result in zip(planes, resized, strict=True):
            _shorten(plane[block.inputs], block, result[block.outputs])
    return resized


@dataclass(frozen=True)
class _Block:
    """Some outputs of one axis.

    Attributes:
        outputs: Which they are.
        inputs: What they are made of.
        weights: Whole numbers as float32 or float64 [outputs, inputs], whichever computes their sums exactly.
        precision: The weights of an output are about 2^precision together.
    """

    outputs: slice
    inputs: slice
    weights: NDArray[np.floating]
    precision: int

    def rounded(self, sums: NDArray[np.floating]) -> NDArray[np.floating]:
        """Weighted sums of whole numbers as the pixels that they are; no weight is negative, so none leaves 0...255."""
        sums += 2.0 ** (self.precision - 1)
        sums *= 2.0**-self.precision  # exact; the cast to uint8 that follows cuts the rest off
        np.minimum(sums, 255, out=sums)
        return sums


def _narrow(values: NDArray[np.uint8], block: _Block, result: NDArray[np.uint8]) -> None:
    """Weigh columns: uint8 [rows, inputs] -> [rows, outputs]."""
    step = max(1, _STRIPE_VALUES // values.shape[1])
    weights = np.ascontiguousarray(block.weights.T)
    for start in range(0, len(values), step):
        stripe = values[start : start + step].astype(weights.dtype)
        result[start : start + step] = block.rounded(stripe @ weights)


def _shorten(values: NDArray[np.uint8], block: _Block, result: NDArray[np.uint8]) -> None:
    """Weigh rows: uint8 [inputs, columns] -> [outputs, columns]."""
    step = max(1, _STRIPE_VALUES // len(values))
    for start in range(0, values.shape[1], step):
        stripe = values[:, start : start + step].astype(block.weights.dtype)
        result[:, start : start + step] = block.rounded(block.weights @ stripe)


def _blocks(old: int, new: int) -> Iterator[_Block]:
    """The outputs of an axis that goes from `old` to `new` pixels, a block at a time."""
    first, length, weights, precision = _weights(old, new)
    taps = np.arange(weights.shape[1])
    for start in range(0, new, _BLOCK):
        outputs = slice(start, min(start + _BLOCK, new))
        low, high = int(first[outputs].min()), int((first + length)[outputs].max())
        rows, used = np.nonzero(taps < length[outputs, None])
        dense = np.zeros((outputs.stop - start, high - low))
        dense[rows, first[outputs][rows] - low + used] = weights[outputs][rows, used]
        exact = 255 * dense.sum(axis=1).max() + 2 ** (precision - 1) < 1 << 24
        yield _Block(outputs, slice(low, high), dense.astype(np.float32 if exact else np.float64), precision)


def _weights(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], int]:
    """Of each output its first input and the number of its inputs; whole weights [new, taps]; their precision."""
    scale = old / new
    support, inverse = max(scale, 1.0), min(1 / scale, 1.0)
    taps = ceil(support) * 2 + 1
    centre = scale * (np.arange(new) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    length = np.clip(np.minimum((centre + support + 0.5).astype(np.int64), old) - first, 0, taps)
    index = np.arange(taps)
    shares = np.maximum(1 - np.abs((index + first[:, None] - centre[:, None] + 0.5) * inverse), 0)
    shares[index >= length[:, None]] = 0
    shares /= np.cumsum(shares, axis=1)[:, -1:]  # one after the other, as the kernel adds them
    largest = float(shares.max())
    precision = next((p for p in range(22) if int(0.5 + largest * 2 ** (p + 1)) >= 1 << 15), 22)
    return first, length, np.floor(0.5 + shares * 2.0**precision), precision
