"""Figures for every token from the logits of two models at the same positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenScores", "divergence", "log_probabilities"]


@dataclass(frozen=True)
class TokenScores:
    """Scores of a reference and an engine at n positions; every array is [n].

    `reference_loss` and `engine_loss` are the negative log likelihoods of the token that follows, in nats; `kl` is
    KL(reference || engine) in nats; `agrees` says whether the likeliest tokens are the same.
    """

    reference_loss: NDArray[np.float64]
    engine_loss: NDArray[np.float64]
    kl: NDArray[np.float64]
    agrees: NDArray[np.bool_]

    @classmethod
    def of(
        cls, reference: NDArray[np.float64], engine: NDArray[np.float64], following: NDArray[np.int64]
    ) -> TokenScores:
        """The scores from log probabilities [n, vocab] and the tokens that follow [n]."""
        at = np.arange(len(following))
        return cls(
            -reference[at, following],
            -engine[at, following],
            divergence(reference, engine),
            reference.argmax(axis=1) == engine.argmax(axis=1),
        )

    @classmethod
    def joined(cls, parts: list[TokenScores]) -> TokenScores:
        """The scores of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits [n, vocab] -> log softmax in float64."""
    shifted: NDArray[np.float64] = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def divergence(reference: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """KL(reference || other) = sum of p (log p - log q) in nats from log probabilities [n, vocab]: [n], none negative
    (rounding would make it so where both are equal)."""
    kl: NDArray[np.float64] = (np.exp(reference) * (reference - other)).sum(axis=1)
    return np.maximum(kl, 0)
