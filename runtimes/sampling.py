"""Choosing the next token of each row from its logits: greedy, or at a temperature from the nucleus."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.arguments import a_number, a_whole_number, shown
from l4export.runtimes.one_caller import OneCaller, exclusive

__all__ = ["Sampler"]


class Sampler(OneCaller):
    """Turns logits into tokens; the same settings, seed and logits always give the same tokens.

    Temperature 0 is greedy: the likeliest token, of equal ones the lowest. Otherwise a token is drawn from
    softmax(logits / temperature), in float64, cut to its nucleus: the smallest set of likeliest tokens whose mass
    reaches `top_p` (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020; equals go by index).

    Row r draws from a random stream of its own, the r-th child of `seed`, once a call: what a row says depends
    neither on the other rows nor on how many there are. Without a seed the streams are fresh ones.

    It is for one generation, and for one caller at a time: a second one is refused.

    Raises `InputError` for a temperature that is negative or not finite, a `top_p` outside (0, 1], a negative seed, and
    whatever is no number.
    """

    _what = "the sampler"
    _remedy = "give each generation a sampler of its own"

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None) -> None:
        super().__init__()
        wanted = "a finite number, 0 (greedy) or more", "a number above 0 and up to 1 (1 keeps every token)"
        self.temperature = a_number(temperature, "temperature", wanted[0])
        self.top_p = a_number(top_p, "top_p", wanted[1])
        if self.temperature < 0:
            raise InputError(f"temperature is {shown(temperature)}: give {wanted[0]}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {shown(top_p)}: give {wanted[1]}")
        if seed is not None:
            seed = a_whole_number(seed, "seed", 0)
        self._seeds = np.random.SeedSequence(seed)
        self._streams: list[np.random.Generator] = []

    @exclusive
    def __call__(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Return one token a row, int64 [batch], for logits float32 [batch, vocab].

        A logit of -inf forbids its token. Raises `InputError` for another shape and for rows that define no
        distribution: those that hold NaN or +inf, or nothing but -inf.
        """
        _check(logits)
        if self.temperature == 0:
            tokens = [int(row.argmax()) for row in logits]
        else:
            rows = zip(logits, self._random(len(logits)), strict=True)
            tokens = [self._draw(row, stream) for row, stream in rows]
        return np.array(tokens, dtype=np.int64)

    def _random(self, rows: int) -> list[np.random.Generator]:
        """The streams of the first `rows` rows; `spawn` continues where it stopped: no row changes an earlier one."""
        for child in self._seeds.spawn(max(0, rows - len(self._streams))):
            self._streams.append(np.random.Generator(np.random.PCG64(child)))
        return self._streams[:rows]

    def _draw(self, logits: NDArray[np.floating[Any]], stream: np.random.Generator) -> int:
        """Invert the cumulative distribution of one row's nucleus at a uniform number."""
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the peak to -inf, which is its limit
            mass = np.exp((logits.astype(np.float64) - float(logits.max())) / self.temperature)
        mass /= mass.sum()
        tokens = _nucleus(mass, self.top_p)
        cumulative = np.cumsum(mass[tokens])
        at = np.searchsorted(cumulative, stream.random() * cumulative[-1], side="right")
        return int(tokens[min(int(at), len(tokens) - 1)])


def _nucleus(mass: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """The tokens that may be drawn; none of them has a mass of 0.

    Tokens of at most (1 - top_p) / vocab each weigh less than 1 - top_p together, so they lie outside the nucleus
    and only the others, a few thousand of 200000 as a rule, need sorting. Half of that leaves the likeliest token in
    even where all are alike and 1 - top_p rounds to 1.
    """
    tokens = np.flatnonzero(mass > (1 - top_p) / mass.size / 2)
    if top_p == 1:
        return tokens
    likeliest = tokens[np.argsort(-mass[tokens], kind="stable")]
    return likeliest[: np.searchsorted(np.cumsum(mass[likeliest]), top_p) + 1]


def _check(logits: NDArray[np.floating[Any]]) -> None:
    """Refuse logits that are not [batch, vocab] or whose largest value in a row is not finite."""
    if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiuV":  # V: bfloat16
        raise InputError(f"logits are a {type(logits).__name__}, not an array of floats: give what `append` returns")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise InputError(f"logits have the shape {list(logits.shape)}: give [batch, vocab], the last position's only")
    peaks = logits.max(axis=1)  # NaN wins every comparison here, +inf all others; -inf only when alone
    for row in np.flatnonzero(~np.isfinite(peaks)):
        what = "contain NaN" if np.isnan(peaks[row]) else "contain +inf" if peaks[row] > 0 else "are all -inf"
        raise InputError(f"logits of row {row} {what}: no token can be chosen; check the engine with `l4export parity`")
