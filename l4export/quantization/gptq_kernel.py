"""The compiled part of GPTQ. Every function works on some rows of a matrix, each row by itself, and releases the GIL.

All of it is in one file, because Numba's cache watches only the file of the function that it stores (`kernels.py` says
more). Inner loops index with `np.uintp`, because signed indices may be negative, which keeps loops from being
vectorised.

Many functions have these arguments: float32 `scales` and `zeros` (the code that stands for 0) are [N, G]; `top` is the
largest code; `codes` are uint8 [N, K].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from l4export.quantization.jit import jit

__all__ = ["block_products", "choose_scales", "descend", "round_columns"]


@jit
def _nearest(value: np.float32, scale: np.float32, zero: np.float32, top: np.float32) -> Any:
    """Return the code of a value, or the code of 0 where the scale is 0."""
    code = np.rint(value / scale) + zero if scale != np.float32(0) else zero
    return min(max(code, np.float32(0)), top)


@jit
def choose_scales(weight: Any, cost: Any, block: int, factors: Any, scales: Any, zeros: Any, top: np.float32) -> None:
    """Multiply each block's scale by the one of `factors` with the smallest sum_i cost_i (w_i - w'_i)^2.

    weight float32 [N, K], cost float32 [K].
    """
    n, k = weight.shape
    for r in range(n):
        for group in range(k // block):
            plain, zero, least = scales[r, group], zeros[r, group], np.float32(np.inf)
            for factor in factors:
                scale = plain * factor
                error = np.float32(0)
                for i in range(group * block, (group + 1) * block):
                    away = weight[r, i] - (_nearest(weight[r, i], scale, zero, top) - zero) * scale
                    error += cost[i] * away * away
                if error < least:
                    least, scales[r, group] = error, scale


@jit
def round_columns(
    left: Any, factor: Any, groups: Any, scales: Any, zeros: Any, top: np.float32, codes: Any, errors: Any,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Round columns `start` to `stop` - 1, and carry their errors to the columns after them, up to `stop`.

    left: float32 [N, K], what is to be rounded, corrected for the errors of earlier columns.
    factor: float32 [K, K], upper triangular, factor' factor = H^-1.
    groups: int64 [K], the block of each column.
    errors: float32 [N, >= stop - start], written: (w - w') / factor[i, i], for the columns from `stop` on.
    """
    for r in range(len(left)):
        for i in range(start, stop):
            scale, zero = scales[r, groups[i]], zeros[r, groups[i]]
            code = _nearest(left[r, i], scale, zero, top)
            codes[r, i] = np.uint8(code)
            error = (left[r, i] - (code - zero) * scale) / factor[i, i]
            errors[r, i - start] = error
            for j in range(i + 1, stop):
                left[np.uintp(r), np.uintp(j)] -= error * factor[np.uintp(i), np.uintp(j)]


@jit
def descend(
    away: Any, slope: Any, moments: Any, block: int, scales: Any, zeros: Any, top: np.float32, codes: Any
) -> None:  # fmt: skip
    """Make one sweep of coordinate descent on (w - w') H (w - w')': replace each code by the best, given all others.

    away: float32 [N, K], w - w', kept up to date.
    slope: float32 [N, K], (w - w') H, kept up to date.
    moments: float32 [K, K], H.
    """
    n, k = away.shape
    for r in range(n):
        for i in range(k):
            scale, zero = scales[r, i // block], zeros[r, i // block]
            if scale == np.float32(0):
                continue
            old = np.float32(codes[r, i])
            best = _nearest((old - zero) * scale + slope[r, i] / moments[i, i], scale, zero, top)
            if best != old:
                change = (best - old) * scale
                codes[r, i] = np.uint8(best)
                away[r, i] -= change
                for j in range(k):
                    slope[np.uintp(r), np.uintp(j)] -= change * moments[np.uintp(i), np.uintp(j)]


@jit
def block_products(left: Any, right: Any, block: int, sums: Any) -> None:
    """Compute the scalar product of each block of two matrices, row by row.

    left, right: float32 [N, K'].
    sums: float64 [N, K' / block], written.
    """
    n, k = left.shape
    for r in range(n):
        for group in range(k // block):
            total = np.float64(0)
            for i in range(group * block, (group + 1) * block):
                total += np.float64(left[np.uintp(r), np.uintp(i)] * right[np.uintp(r), np.uintp(i)])
            sums[r, group] = total
