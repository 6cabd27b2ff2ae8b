"""Continuing prompts, one token a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from l4export.runtimes.new_tokens import NewTokens
from l4export.runtimes.one_caller import OneCaller, exclusive
from l4export.runtimes.sampling import Sampler
from l4export.runtimes.session import Session

__all__ = ["Steps", "continuations"]

T = TypeVar("T")


class Steps(OneCaller, Iterator[T], Generic[T]):
    """An iterator for one caller at a time: `next` is refused with `InputError` while another `next` runs."""

    _what = "the generation"
    _remedy = "give each thread a generation of its own, or wait for that call to end"

    def __init__(self, steps: Iterator[T]) -> None:
        super().__init__()
        self._steps = steps

    @exclusive
    def __next__(self) -> T:
        return next(self._steps)


def continuations(
    session: Session, prompts: NewTokens, sampler: Sampler, stops: frozenset[int], max_new_tokens: int
) -> Iterator[list[int | None]]:
    """Continue the prompts in an empty session of as many rows; yields one list a step, None where a row has ended."""
    running = [True] * len(prompts.rows)
    logits = session.append(prompts.rows, last_only=True, images=prompts.images)[:, 0]
    for count in range(max_new_tokens):
        chosen = sampler(np.where(np.asarray(running)[:, None], logits, 0))
        tokens = [int(token) if on else None for token, on in zip(chosen, running, strict=True)]
        yield list(tokens)  # what the caller does to it changes nothing here
        for row, token in enumerate(tokens):
            full = session.lengths[row] >= session.capacity
            running[row] = token is not None and token not in stops and not full
        if not any(running) or count + 1 == max_new_tokens:
            return
        logits = session.step([token if on else None for token, on in zip(tokens, running, strict=True)])
