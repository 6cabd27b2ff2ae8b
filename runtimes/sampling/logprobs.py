"""Log probabilities of what was chosen, and of what might have been."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenLogprobs", "token_logprobs"]


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely the model held a token.

    The numbers are log_softmax(logits), natural logarithms, of the logits as the engine gives them: before penalty,
    processors, temperature and filters. OpenAI's interface and vLLM (`raw_logprobs`, its default) give the same.

    Attributes:
        token: Its id.
        logprob: Its log probability.
        top: The likeliest tokens and their log probabilities, likeliest first, of equal ones the lowest first. The
            chosen token is among them only if it is one of them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    """Of logits [vocab] and the token that was chosen, with the `count` likeliest; computed in float64."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    count = min(count, len(scores))
    top: list[int] = []
    if count:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        among = np.flatnonzero(scores >= least)
        top = among[np.argsort(-scores[among], kind="stable")][:count].tolist()
    return TokenLogprobs(token, float(scores[token]), tuple((other, float(scores[other])) for other in top))
