"""Choosing the next token of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.arguments import a_whole_number, integers, shown
from l4export.runtimes.sampling.filters import at_least, largest, nucleus, penalized, weights
from l4export.runtimes.sampling.random_stream import uniform
from l4export.runtimes.sampling.settings import Sampling, sampling_of_rows

__all__ = ["Sampler", "samplers"]

_MOST = 2**64 - 1


class Sampler:
    """Turns the logits of a row into a token, as a `Sampling` says.

    The same settings, seed, stream, number and logits always give the same token: the first whose cumulative
    probability exceeds `uniform(seed, stream, draw)` of all that may be drawn. They are added up in float64, likeliest
    first (equals by index) or, where `top_p` is 1, by index. Nothing is kept between calls (a
    logits processor may keep something), so threads can share a sampler.

    Args:
        sampling: The settings.
        stream: The number of the random stream of the seed, for rows that share one.

    Attributes:
        sampling: The settings.
    """

    def __init__(self, sampling: Sampling | None = None, stream: int = 0) -> None:
        ((self.sampling, _),) = sampling_of_rows(Sampling() if sampling is None else sampling, 1)
        self._stream = a_whole_number(stream, "stream", 0, _MOST)

    def __call__(
        self, logits: NDArray[np.floating[Any]], draw: int, token_ids: Sequence[int] | NDArray[np.int64] = ()
    ) -> int:
        """Return the token for logits [vocab], any float type. A logit of -inf forbids its token.

        Args:
            logits: Of the row's last position.
            draw: The number of the random number: token i of an answer takes number i.
            token_ids: The prompt and what has been said, for the repetition penalty and for logits processors.

        Raises:
            InputError: another shape; logits that hold NaN or +inf, or nothing but -inf, from the engine or from a
                processor; ids of no tokens.
        """
        draw, settings = a_whole_number(draw, "draw", 0, _MOST), self.sampling
        scores = _scores(logits, "logits", "check the engine with `l4export parity`")
        if settings.repetition_penalty != 1 or settings.logits_processor:
            ids = _ids(token_ids, len(scores))
            if settings.repetition_penalty != 1:
                changed = penalized(scores, ids, settings.repetition_penalty)
                scores = _scores(changed, "logits after the repetition penalty", "give one nearer to 1")
            scores = self._processed(scores, ids)
        if settings.temperature == 0:
            return int(scores.argmax())
        tokens = largest(scores, settings.top_k)
        mass = weights(scores[tokens], settings.temperature)
        kept = nucleus(mass, settings.top_p)
        if settings.min_p:
            kept = kept[at_least(mass[kept], settings.min_p)]
        cumulative = np.cumsum(mass[kept])
        number = uniform(int(settings.seed or 0), self._stream, draw)
        at = np.searchsorted(cumulative, number * cumulative[-1], side="right")
        return int(tokens[kept[min(int(at), len(kept) - 1)]])

    def _processed(self, scores: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores after all logits processors."""
        for index, processor in enumerate(self.sampling.logits_processor):
            where = f"scores of logits processor {index}"
            given = _scores(processor(ids, scores), where, "it must leave at least one token possible")
            if given.shape != scores.shape:
                raise InputError(f"{where} have the shape {list(given.shape)}: give {list(scores.shape)}")
            scores = given
        return scores


def samplers(sampling: object, rows: int) -> list[Sampler]:
    """A sampler for each row, from one `Sampling` for all or one for each; see `sampling_of_rows`."""
    return [Sampler(settings, stream) for settings, stream in sampling_of_rows(sampling, rows)]


def _ids(token_ids: Sequence[int] | NDArray[np.int64], vocab: int) -> NDArray[np.int64]:
    """Ids of tokens as int64 [n], read only."""
    ids = integers(token_ids)
    if ids is None or ids.ndim != 1 or (ids.size and not (ids.min() >= 0 and ids.max() < vocab)):
        raise InputError(f"token_ids are {shown(token_ids)}: give a flat sequence of ids of 0 to {vocab - 1}")
    ids = ids.astype(np.int64, copy=False).view()
    ids.flags.writeable = False
    return ids


def _scores(logits: NDArray[np.floating[Any]], what: str, remedy: str) -> NDArray[np.float32]:
    """A copy in float32. Refuse what is not [vocab] or whose largest value is not finite."""
    if not isinstance(logits, np.ndarray) or logits.dtype.kind not in "fiuV":  # V: bfloat16
        raise InputError(f"{what} are a {type(logits).__name__}, not an array of floats: give what `append` returns")
    if logits.ndim != 1 or not logits.size:
        raise InputError(f"{what} have the shape {list(logits.shape)}: give [vocab], those of one row's last position")
    with np.errstate(over="ignore"):  # beyond float32 is +inf, which is refused
        scores = logits.astype(np.float32)
    peak = float(scores.max())  # NaN wins every comparison here, +inf all others; -inf only when alone
    if not np.isfinite(peak):
        found = "contain NaN" if np.isnan(peak) else "contain +inf" if peak > 0 else "are all -inf"
        raise InputError(f"{what} {found}: no token can be chosen; {remedy}")
    return scores
