"""What ends an answer and what is told of it, as a caller says it: checked when it is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.runtimes.arguments import a_whole_number, shown

__all__ = ["Limits", "checked_limits", "checked_logprobs"]


@dataclass(frozen=True)
class Limits:
    """What ends a row, beside a full session: as many new tokens, or one of the stop tokens."""

    max_new_tokens: int
    stops: frozenset[int]


def checked_limits(config: ModelConfig, max_new_tokens: int, stop_token_ids: Iterable[int] | None) -> Limits:
    """The limits of an answer; without stop tokens, the model's end-of-sequence tokens.

    Raises:
        InputError: no number of 1 or more, or what are no tokens.
    """
    count = a_whole_number(max_new_tokens, "max_new_tokens", 1)
    if stop_token_ids is None:
        return Limits(count, frozenset(config.eos_token_ids))
    if isinstance(stop_token_ids, str | bytes) or not isinstance(stop_token_ids, Iterable):
        raise InputError(f"stop_token_ids is {shown(stop_token_ids)}: give a collection of token ids")
    most = config.vocab_size - 1
    stops = (a_whole_number(token, "a token of stop_token_ids", 0, most) for token in stop_token_ids)
    return Limits(count, frozenset(stops))


def checked_logprobs(config: ModelConfig, logprobs: int | None) -> int | None:
    """How many of the likeliest tokens are told with each; None: no log probabilities at all."""
    return None if logprobs is None else a_whole_number(logprobs, "logprobs", 0, config.vocab_size)
