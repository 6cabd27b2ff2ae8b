"""Transposing a matrix, a few of its rows at a time."""

from __future__ import annotations

import numpy as np

__all__ = ["transpose", "transposed"]

_PANEL_BYTES = 32


def transpose(matrix: np.ndarray, out: np.ndarray) -> None:
    """`out[...] = matrix.T`. The caches hold the few rows that are read at a time: that is several times as fast."""
    bits = f"u{matrix.itemsize}"  # copies between strided bfloat16 arrays are slow
    numbers, to = matrix.view(bits), out.view(bits)
    panel = max(16, _PANEL_BYTES // matrix.itemsize)
    for start in range(0, len(numbers), panel):
        to[:, start : start + panel] = numbers[start : start + panel].T


def transposed(matrix: np.ndarray) -> np.ndarray:
    """`matrix.T` as an array of its own."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    transpose(matrix, out)
    return out
