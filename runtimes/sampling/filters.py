"""Which tokens may be drawn, and with what weight: the definitions of transformers' processors and warpers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["at_least", "largest", "nucleus", "penalized", "weights"]


def penalized(scores: NDArray[np.float32], ids: NDArray[np.int64], penalty: float) -> NDArray[np.float32]:
    """Scores [vocab] with those of the tokens `ids` divided by `penalty`, or multiplied where they are negative."""
    there, factor = scores[ids], np.float32(penalty)
    with np.errstate(over="ignore"):  # to -inf or +inf, as in transformers
        there = np.where(there < 0, there * factor, there / factor)
    changed = scores.copy()
    changed[ids] = there
    return changed


def largest(scores: NDArray[np.float32], top_k: int) -> NDArray[np.intp]:
    """The tokens with the `top_k` largest scores, and those that equal the last of them; 0: all of them."""
    if not 0 < top_k < len(scores):
        return np.arange(len(scores))
    least = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
    return np.flatnonzero(scores >= least)


def weights(scores: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """softmax(scores / temperature) in float64."""
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the peak to -inf, which is its limit
        mass = np.exp((scores.astype(np.float64) - float(scores.max())) / temperature)
    total: NDArray[np.float64] = mass / mass.sum()
    return total


def nucleus(mass: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The smallest set of likeliest entries of `mass` that reaches `top_p`; none of them is 0.

    They come in the order of their mass, or of their index where `top_p` is 1.

    Entries of at most (1 - top_p) / n each weigh less than 1 - top_p together, so they lie outside the nucleus and only
    the others, a few thousand of 200000 as a rule, need sorting. Half of that leaves the likeliest entry in even where
    all are alike and 1 - top_p rounds to 1.
    """
    entries = np.flatnonzero(mass > (1 - top_p) / mass.size / 2)
    if top_p == 1:
        return entries
    likeliest = entries[np.argsort(-mass[entries], kind="stable")]
    return likeliest[: np.searchsorted(np.cumsum(mass[likeliest]), top_p) + 1]


def at_least(mass: NDArray[np.float64], min_p: float) -> NDArray[np.intp]:
    """The entries of `mass` that are at least `min_p` of the largest."""
    return np.flatnonzero(mass >= min_p * mass.max())
