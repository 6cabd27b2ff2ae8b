"""Confidence intervals for means over the tokens of a text, which depend on their neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockBootstrap", "Interval"]

_REPLICATES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure, and the bounds between which it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


class BlockBootstrap:
    """Intervals from resampled blocks of consecutive tokens.

    n tokens are cut into m blocks of l = ceil(sqrt(n)) tokens (the last may be shorter) with sums s_j and lengths l_j.
    2000 times m blocks are drawn with replacement, and the figure is f(sum of their s_j / sum of their l_j); the
    interval lies between the 2.5 % and 97.5 % quantiles of these. What tokens closer than a block have to do with each
    other stays within blocks; the interval is right for long texts because l and n / l both grow with n (E. Carlstein,
    "The use of subseries values for estimating the variance of a general statistic from a stationary sequence", Annals
    of Statistics 14, 1986; bootstrap over blocks: H. Kuensch, Annals of Statistics 17, 1989). With few blocks it is too
    narrow: of 128 tokens, 11 blocks.

    All figures of one object are from the same draws. A difference of two models token by token is therefore paired:
    what both find hard cancels.
    """

    def __init__(self, tokens: int, seed: int = 0) -> None:
        length = math.ceil(math.sqrt(tokens))
        self._starts = np.arange(0, tokens, length)
        self._lengths = np.diff(self._starts, append=tokens)
        blocks = len(self._starts)
        self._draws = np.random.default_rng(seed).integers(0, blocks, (_REPLICATES, blocks))

    def mean(self, values: NDArray[Any], of: Callable[[Any], Any] = np.asarray) -> Interval:
        """of(mean) of one value a token, [n]; `of` is monotonous, such as `np.exp` for a perplexity."""
        sums = np.add.reduceat(values.astype(np.float64), self._starts)
        means = sums[self._draws].sum(axis=1) / self._lengths[self._draws].sum(axis=1)
        low, high = np.quantile(of(means), [0.025, 0.975])
        return Interval(float(of(sums.sum() / self._lengths.sum())), float(low), float(high))
