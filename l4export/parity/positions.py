"""How far an engine is from its reference at every position, and what it says where that is farthest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l4export.evidence.worst_tokens import WorstToken, worst_token
from l4export.parity.logits import divergences
from l4export.reference.token_scores import log_probabilities

if TYPE_CHECKING:
    from l4export.runtimes.text.codec import TextCodec

__all__ = ["PositionFigures", "position_figures"]

_WORST = 5


@dataclass(frozen=True)
class PositionFigures:
    """Figures of T positions, prefill and decode together.

    `difference` is max |difference| of a position's logits over the reference's largest |logit| of all positions, and
    `kl` is KL(reference || engine) in nats; both have three significant digits. `worst` are the positions with the
    largest KL.
    """

    difference: tuple[float, ...]
    kl: tuple[float, ...]
    worst: tuple[WorstToken, ...]


def position_figures(
    reference: NDArray[np.float32], engine: NDArray[np.float32], ids: NDArray[np.int64], codec: TextCodec | None
) -> PositionFigures:
    """Compare logits [T, vocab] for ids [T], which `codec` turns into words."""
    largest = float(np.abs(reference).max()) or 1.0
    difference = np.abs(reference.astype(np.float64) - engine).max(axis=1) / largest
    kl, tokens = divergences(reference, engine), ids.tolist()
    worst = np.argsort(-kl, kind="stable")[:_WORST].tolist()
    sides = [log_probabilities(side[worst]) for side in (reference, engine)]
    return PositionFigures(
        difference=_short(difference),
        kl=_short(kl),
        worst=tuple(
            worst_token(codec, tokens, 0, at, kl[at], *(side[row] for side in sides)) for row, at in enumerate(worst)
        ),
    )


def _short(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(f"{value:.3g}") for value in values.tolist())
