"""Scales of plots: where a value lies on an axis, in percent, and which numbers are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "linear_scale", "logarithmic_scale"]

_MOST_DECADES = 5
"""Labels on a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, with the numbers that stand beside it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The place of a value, from 0 to 100; what lies outside, or is no number, is at an end."""
        if math.isnan(value):
            return 100.0
        low, high, here = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, here = math.log10(low), math.log10(high), math.log10(here)
        return round(100 * (here - low) / (high - low), 2)


def linear_scale(values: Iterable[float]) -> Scale:
    """From 0 to a round number that is not below any value, in up to five equal steps."""
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    if most <= 0:
        return Scale(0.0, 1.0, (0.0, 1.0))
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= most)
    ticks = tuple(float(f"{index * step:.6g}") for index in range(math.ceil(most / step - 1e-9) + 1))
    return Scale(0.0, ticks[-1], ticks)


def logarithmic_scale(values: Iterable[float]) -> Scale:
    """Whole decades around all values above 0, of which up to five are written."""
    found = [math.log10(value) for value in values if value > 0 and math.isfinite(value)]
    low, high = math.floor(min(found, default=-1.0)), math.ceil(max(found, default=0.0))
    high = max(high, low + 1)
    step = -(-(high - low) // _MOST_DECADES)
    return Scale(10.0**low, 10.0**high, tuple(10.0**decade for decade in range(low, high + 1, step)), True)
