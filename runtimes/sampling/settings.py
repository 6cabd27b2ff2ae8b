"""What a caller says about sampling, checked when it is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.arguments import a_number, a_whole_number, is_sequence, shown
from l4export.runtimes.sampling.random_stream import fresh_seed

__all__ = ["LogitsProcessor", "Sampling", "sampling_of_rows"]

LogitsProcessor = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[Any]]
"""Changes the scores of one row: `processor(token_ids, scores)` returns them, float32 [vocab]; -inf forbids a token.

`token_ids`, int64 [n] and read only, are those of the row: what its session held, the prompt, and what has been said.
`scores` is the processor's own and may be changed in place.
"""


@dataclass(frozen=True)
class Sampling:
    """How the next token of a row is chosen. The steps are those of transformers, in this order.

    1. `repetition_penalty` r: the logit x of every token that prompt or answer contain becomes x / r, or x * r where
       x < 0 (Keskar et al., "CTRL", 2019). 1 changes nothing.
    2. `logits_processor`: functions of the row's token ids and scores, in turn.
    3. With `temperature` 0 the likeliest token is taken, of equal ones the lowest, and nothing below counts. Otherwise
       scores are divided by the temperature.
    4. `top_k`: only the k largest scores stay, with all that equal the last of them. 0 keeps every token.
    5. `top_p`: only the nucleus stays, the smallest set of likeliest tokens whose probability reaches p (Holtzman et
       al., "The Curious Case of Neural Text Degeneration", 2020; equals go by index). 1 keeps every token.
    6. `min_p`: only tokens stay that are at least that many times as likely as the likeliest (Nguyen et al., "Turning
       Up the Heat", 2024). 0 keeps every token.
    7. One of them is drawn. `seed`, 0 to 2^64 - 1, makes that repeatable; None takes a fresh one.

    A processor that keeps a state belongs to one generation of one row: give each row a `Sampling` of its own.

    Raises `InputError` for a setting of another type or out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logits_processor: Sequence[LogitsProcessor] = ()

    def __post_init__(self) -> None:
        self._set("temperature", lambda x: x >= 0, "a finite number, 0 (greedy) or more")
        self._set("top_p", lambda x: 0 < x <= 1, "a number above 0 and up to 1 (1 keeps every token)")
        self._set("min_p", lambda x: 0 <= x <= 1, "a number of 0 (keeps every token) to 1")
        self._set("repetition_penalty", lambda x: x > 0, "a number above 0 (1 changes nothing)")
        object.__setattr__(self, "top_k", a_whole_number(self.top_k, "top_k", 0))
        if self.seed is not None:
            object.__setattr__(self, "seed", a_whole_number(self.seed, "seed", 0, 2**64 - 1))
        processors = self.logits_processor
        if not is_sequence(processors) or not all(map(callable, processors)):
            raise InputError(f"logits_processor is {shown(processors)}: give a sequence of functions of ids and scores")
        object.__setattr__(self, "logits_processor", tuple(processors))

    def _set(self, name: str, fits: Callable[[float], bool], wanted: str) -> None:
        """Take a number as a float if it `fits`."""
        given = getattr(self, name)
        number = a_number(given, name, wanted)
        if not fits(number):
            raise InputError(f"{name} is {shown(given)}: give {wanted}")
        object.__setattr__(self, name, number)


def sampling_of_rows(sampling: object, rows: int) -> list[tuple[Sampling, int]]:
    """The settings of each row, with a seed, and the number of its random stream.

    They come from one `Sampling` for all or one for each. Rows that share settings, and so a seed, draw from streams 0,
    1, 2, ...; a row with settings of its own draws from stream 0, as it does alone.

    Raises:
        InputError: it is something else, or for another number of rows.
    """
    if isinstance(sampling, Sampling):
        shared = _seeded(sampling)
        return [(shared, row) for row in range(rows)]
    each: list[Any] = list(sampling) if is_sequence(sampling) else []  # type: ignore[call-overload]
    if not each or not all(isinstance(item, Sampling) for item in each):
        raise InputError(f"sampling is {shown(sampling)}: give a Sampling, or one for each row")
    if len(each) != rows:
        raise InputError(f"sampling is given for {len(each)} rows, and there are {rows}: give one for each, or one")
    return [(_seeded(item), 0) for item in each]


def _seeded(sampling: Sampling) -> Sampling:
    """The same with a seed: its own or, as it has none, a fresh one."""
    return sampling if sampling.seed is not None else replace(sampling, seed=fresh_seed())
