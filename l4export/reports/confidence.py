"""Confidence intervals for means over the tokens of a text, where neighbours depend on each other."""

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
    m blocks are drawn with replacement, 2000 times, and each time the figure is f(sum of their s_j / sum of their l_j).
    The interval lies between the 2.5 % and the 97.5 % quantile of these figures. Dependences between tokens that are
    closer than a block stay within blocks. The interval is right for long texts because l and n / l both grow with n
    (E. Carlstein, "The use of subseries values for estimating the variance of a general statistic from a stationary
    sequence", Annals of Statistics 14, 1986; bootstrap over blocks: H. Kuensch, Annals of Statistics 17, 1989). With
    few blocks it is too narrow; 128 tokens are only 11 blocks.

    All figures of one object come from the same draws. A difference between two models, token by token, is therefore
    paired: what is hard for both cancels out.
    """

    def __init__(self, tokens: int, seed: int = 0) -> None:
        length = math.ceil(math.sqrt(tokens))
        self._starts = np.arange(0, tokens, length)
        self._lengths = np.diff(self._starts, append=tokens)
        blocks = len(self._starts)
        self._draws = np.random.default_rng(seed).integers(0, blocks, (_REPLICATES, blocks))

    def mean(self, values: NDArray[Any], of: Callable[[Any], Any] = np.asarray) -> Interval:
        """Return of(mean) of `values` [n], one a token. `of` is monotonic, such as `np.exp` for a perplexity."""
        sums = np.add.reduceat(values.astype(np.float64), self._starts)
        means = sums[self._draws].sum(axis=1) / self._lengths[self._draws].sum(axis=1)
        low, high = np.quantile(of(means), [0.025, 0.975])
        return Interval(float(of(sums.sum() / self._lengths.sum())), float(low), float(high))
