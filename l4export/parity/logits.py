"""How far two sets of logits are from each other, position by position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l4export.errors import CheckFailed, InputError
from l4export.reference.token_scores import divergence, log_probabilities
from l4export.reports.verdict import missed

__all__ = ["LogitComparison", "compare_logits", "departing", "divergences", "failures_of"]


@dataclass(frozen=True)
class LogitComparison:
    """How far one set of logits is from the reference's, over `positions` positions.

    `max_relative_difference` is `max_abs_difference` divided by the reference's largest |logit|. `kl_*` are
    KL(reference || engine) in nats. `top1_agreement` is the share of positions with the same likeliest token. If the
    likeliest tokens differ, but are nearly tied in the reference, the position is counted in `near_ties` and not as a
    disagreement. `top5_overlap` is the mean share of common tokens among the five likeliest.
    """

    positions: int
    largest_logit: float
    max_abs_difference: float
    mean_abs_difference: float
    max_relative_difference: float
    kl_mean: float
    kl_max: float
    top1_agreement: float
    near_ties: int
    top5_overlap: float
    worst_position: int


def compare_logits(
    reference: NDArray[np.float32], engine: NDArray[np.float32], accepted: float = 1e-4
) -> LogitComparison:
    """Compare logits float32 [positions, vocab]. Differences and KL are computed in float64.

    `accepted` is the largest difference that is no fault, as a share of the largest |logit|. Two logits are nearly tied
    if they are within twice this difference, because each of them may move by as much and so change the argmax.

    Raises:
        InputError: the shapes differ, or the reference's logits are not finite (a NaN equals nothing).
        CheckFailed: the engine's logits are not finite.
    """
    if reference.shape != engine.shape:
        raise InputError(f"logits of shape {list(engine.shape)} against {list(reference.shape)}: not comparable")
    if (at := _not_finite(reference)) is not None:
        raise InputError(f"the reference's logits at position {at} are not finite: check the checkpoint's weights")
    if (at := _not_finite(engine)) is not None:
        raise CheckFailed(f"the engine's logits at position {at} are not finite: it was built or loaded wrong")
    difference = np.abs(reference.astype(np.float64) - engine)
    largest = float(np.abs(reference).max())
    kl = divergences(reference, engine)
    top = reference.argmax(axis=1), engine.argmax(axis=1)
    rows = np.arange(len(reference))
    gap = reference[rows, top[0]] - reference[rows, top[1]]
    swapped = top[0] != top[1]
    near = swapped & (gap <= 2 * accepted * largest)
    count = min(5, reference.shape[1])
    return LogitComparison(
        positions=len(reference),
        largest_logit=largest,
        max_abs_difference=float(difference.max()),
        mean_abs_difference=float(difference.mean()),
        max_relative_difference=float(difference.max() / largest) if largest else float(difference.max()),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        top1_agreement=float(1 - (swapped & ~near).mean()),
        near_ties=int(near.sum()),
        top5_overlap=float(np.mean([_overlap(*pair, count) for pair in zip(reference, engine, strict=True)])),
        worst_position=int(difference.max(axis=1).argmax()),
    )


def departing(
    reference: NDArray[np.float32], engine: NDArray[np.float32], limits: Mapping[str, float]
) -> NDArray[np.bool_]:
    """Return for each position [T] of a phase whether it exceeds `max_relative_difference` or `kl_max`."""
    difference = np.abs(reference - engine).max(axis=1) / (np.abs(reference).max() or 1.0)
    kl = divergences(reference, engine)
    beyond: NDArray[np.bool_] = ~(difference <= limits.get("max_relative_difference", np.inf))
    return beyond | ~(kl <= limits.get("kl_max", np.inf))


def divergences(reference: NDArray[np.float32], engine: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return KL(softmax(reference) || softmax(engine)) of each row of logits [T, vocab] in nats: [T]."""
    rows = zip(reference[:, None], engine[:, None], strict=True)  # float64 of all at once would be many times as large
    return np.concatenate([divergence(*map(log_probabilities, pair)) for pair in rows])


def failures_of(phase: str, figures: LogitComparison, thresholds: Mapping[str, float]) -> list[str]:
    """Describe the thresholds that the logits of a phase miss."""
    return [f"{phase} {words}" for words in missed(vars(figures), thresholds)]


def _not_finite(logits: NDArray[np.float32]) -> int | None:
    """Return the first position whose logits [T, vocab] are not all finite, or None."""
    found = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    return int(found[0]) if len(found) else None


def _overlap(reference: NDArray[np.float32], engine: NDArray[np.float32], count: int) -> float:
    best = [set(np.argsort(-logits, kind="stable")[:count].tolist()) for logits in (reference, engine)]
    return len(best[0] & best[1]) / count
