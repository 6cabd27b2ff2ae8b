"""float32 arithmetic that NumPy lacks: fused multiplication and addition, rounded once."""

from __future__ import annotations

import numpy as np

F32 = np.float32


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 arrays, rounded once to nearest even.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd there: with 53 bits, at least two
    more than 24, rounding that to float32 gives what rounding the exact sum would [Boldo and Melquiond, "Emulation of
    FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008].
    """
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + c
        part = total - product
        error = (product - (total - part)) + (c - part)  # total + error is the exact sum [Knuth's TwoSum]
        even = (total.view(np.int64) if total.ndim else np.asarray(total).view(np.int64)) & 1 == 0
        inexact = np.isfinite(total) & (error != 0) & even
        odd = np.where(inexact, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        return odd.astype(F32)
