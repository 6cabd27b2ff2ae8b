"""Answers that depart from the runtime's: allowed where two tokens are so nearly alike that rounding may decide.

For engines that round nothing below float32. Rows that are fed together, and prompts that are fed in other pieces, add
up in another order, which moves a logit by about a millionth of the largest one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.filters import weights
from l4export.runtimes.sampling.random_stream import uniform
from l4export.runtimes.sampling.sampler import Sampler
from l4export.runtimes.sampling.settings import Sampling

__all__ = ["departures"]

APART = 1e-5
"""Greedy: two logits that differ by less, of the largest one, are a near tie. Each may move by a millionth or two."""

BESIDE = 1e-6
"""Drawn: a random number that is nearer to a boundary of the cumulative probabilities is a near tie.

Of 16,000 tokens two were drawn otherwise, 1.8e-7 and 4.7e-8 beside a boundary. A thousandth of all draws are this near
to one, and then the token beyond it, no other, would be taken for a near tie."""


def departures(
    engine: Engine,
    prompt: Sequence[int],
    count: int,
    sampling: Sampling,
    text: str,
    apart: float = APART,
    beside: float = BESIDE,
) -> int:
    """How often an answer takes the other token of a near tie; 0 where it is what `generate` says.

    Args:
        engine: It has a tokenizer; token by token it says what is right.
        prompt: Ids.
        count: The most new tokens.
        sampling: Temperature and seed alone.
        text: The answer, which a stop token or the count has ended.

    Raises:
        AssertionError: a token that no near tie explains.
    """
    assert Sampling(temperature=sampling.temperature, seed=sampling.seed) == sampling and engine.text is not None
    session, departed, tokens = engine.session(), 0, list[int]()
    logits = session.append(list(prompt), last_only=True)[0, 0]
    for draw in range(count):
        due = Sampler(sampling)(logits, draw)
        possible = [due, *_near_ties(logits, sampling, draw, apart, beside)]
        token = next((token for token in possible if text.startswith(_said(engine, [*tokens, token]))), None)
        assert token is not None, f"token {draw}: {text!r} takes none of {possible} behind {_said(engine, tokens)!r}"
        departed += token != due
        tokens.append(token)
        if token in engine.config.eos_token_ids:
            break
        logits = session.append([token], last_only=True)[0, 0]
    assert _said(engine, tokens) == text.rstrip("\N{REPLACEMENT CHARACTER}")
    return departed


def _near_ties(logits: NDArray[np.float32], sampling: Sampling, draw: int, apart: float, beside: float) -> list[int]:
    """Tokens that rounding may choose."""
    if sampling.temperature == 0:
        return np.flatnonzero(logits >= logits.max() - apart * np.abs(logits).max()).tolist()
    cumulative = np.cumsum(weights(logits, sampling.temperature))
    number = uniform(int(sampling.seed or 0), 0, draw)
    first, last = np.searchsorted(cumulative, [number - beside, number + beside], side="right")
    return list(range(int(first), min(int(last), len(logits) - 1) + 1))


def _said(engine: Engine, tokens: Sequence[int]) -> str:
    """The text of tokens, without the beginning of a character at its end."""
    assert engine.text is not None
    return engine.text.decode(tokens).rstrip("\N{REPLACEMENT CHARACTER}")
