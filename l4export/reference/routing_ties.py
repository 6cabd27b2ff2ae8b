"""Where two experts are nearly tied, either choice is right. The reference is then made to follow the engine.

A token that takes another expert has other logits, and the logits of the tokens that see it change a little too. No
threshold on logits can tell this from a wrong operation. But the reference gives the engine's logits again when that
one choice is made the other way. So at the first position that departs, the choices that are nearly tied there are
tried, and then those before it. Each that explains the departure is kept, and the search continues after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from l4export.model.routing import likeliest

__all__ = ["Choice", "Followed", "RoutedReference", "follow_ties", "followed_choices", "likeliest"]

Choice = tuple[int, int]
"""(layer, position) of a token's choice of experts."""

_MOST = 0.05
"""Share of all choices in which the reference follows; an engine that needs more has another fault."""

_SINGLES, _PAIRS = 8, 4
"""How many of the nearest ties are tried for one departure: one at a time, and then two at a time."""


class RoutedReference(Protocol):
    """A reference that can be made to choose otherwise: `HFReference`."""

    def routed(
        self, token_ids: NDArray[np.int64], swapped: Collection[Choice]
    ) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        """Logits [T, vocab] and, by layer, router logits [T, E] for token ids [T]; in the choices `swapped` the
        likeliest expert that was left out takes the place of the least likely one that was not."""
        ...


@dataclass(frozen=True)
class Followed:
    """The reference's logits float32 [T, vocab], with the choices in which it followed the engine."""

    logits: NDArray[np.float32]
    swapped: frozenset[Choice]


def follow_ties(
    reference: RoutedReference,
    token_ids: NDArray[np.int64],
    departs: Callable[[NDArray[np.float32]], NDArray[np.bool_]],
    count: int,
    accepted: float,
    on_tie: Callable[[int], None] = lambda found: None,
) -> Followed:
    """Make the reference follow an engine in choices of `count` experts each that are nearly tied.

    `departs` says for the reference's logits [T, vocab] which positions [T] depart from the engine's. A choice is
    nearly tied when the logits of the least likely expert chosen and of the likeliest one left out differ by at most
    twice `accepted` times the layer's largest |router logit|: each may move by as much. `on_tie` is told how many were
    found so far.
    """
    swapped: frozenset[Choice] = frozenset()
    logits, routers = reference.routed(token_ids, swapped)
    while (at := _first(departs(logits))) is not None:
        for trial in _trials(routers, at, count, accepted, swapped):
            if len(trial) > _MOST * len(routers) * len(token_ids):
                break
            other, others_routers = reference.routed(token_ids, trial)
            later = _first(departs(other))
            if later is None or later > at:
                swapped, logits, routers = trial, other, others_routers
                on_tie(len(swapped))
                break
        if _first(departs(logits)) == at:
            break  # nothing explains it
    return Followed(logits, swapped)


def followed_choices(
    reference: NDArray[np.float32], theirs: NDArray[np.int64], accepted: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The experts [T, k] of a reference that follows an engine in near ties, where the two choose differently [T], and
    where that is a near tie [T]. The inputs are the reference's router logits [T, E] and the engine's choice [T, k].

    Experts are nearly tied when the reference's logits of those that only one side chose lie within twice `accepted` of
    the largest |logit|.
    """
    ours = likeliest(reference, theirs.shape[1])
    differ = (np.sort(ours) != np.sort(theirs)).any(axis=1)
    near = np.zeros_like(differ)
    for at in np.flatnonzero(differ):
        only_ours, only_theirs = np.setdiff1d(ours[at], theirs[at]), np.setdiff1d(theirs[at], ours[at])
        gap = reference[at, only_ours].max() - reference[at, only_theirs].min()
        near[at] = gap <= 2 * accepted * np.abs(reference).max()
    return np.where(near[:, None], theirs, ours), differ, near


def _first(departing: NDArray[np.bool_]) -> int | None:
    return int(departing.argmax()) if departing.any() else None


def _trials(
    routers: dict[int, NDArray[np.float32]], at: int, count: int, accepted: float, swapped: frozenset[Choice]
) -> Iterator[frozenset[Choice]]:
    """Choices to swap in order to explain a departure at position `at`, the likeliest explanation first."""
    ties = []
    for layer, logits in routers.items():
        if logits.shape[1] > count:
            best = -np.sort(-logits[: at + 1], axis=1)
            gaps = (best[:, count - 1] - best[:, count]) / (np.abs(logits).max() or 1.0)
            near = np.flatnonzero(gaps <= 2 * accepted)
            ties += [(bool(p != at), float(gaps[p]), layer, p) for p in near.tolist() if (layer, p) not in swapped]
    nearest = [(layer, position) for _, _, layer, position in sorted(ties)]
    for tie in nearest[:_SINGLES]:
        yield swapped | {tie}
    for pair in itertools.combinations(nearest[:_PAIRS], 2):
        yield swapped | set(pair)
