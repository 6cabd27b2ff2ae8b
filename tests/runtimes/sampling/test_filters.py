"""Penalty and filters against transformers' own classes, on random scores with ties and infinities."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from l4export.runtimes.sampling.filters import at_least, largest, nucleus, penalized, weights

SCORES = arrays(
    np.float32,
    st.integers(1, 40),
    # quarters tie often and stay apart after a division; -inf is a forbidden token
    elements=st.integers(-60, 60).map(lambda quarters: quarters / 4) | st.just(-math.inf),
).filter(lambda scores: bool(np.isfinite(scores).any()))
TEMPERATURES = st.sampled_from([0.25, 0.5, 1.0, 1.7, 3.0])


def kept_by_transformers(scores: np.ndarray, *warpers: object) -> np.ndarray:
    """The scores [vocab] that its warpers leave, -inf where a token is removed."""
    ids = torch.zeros((1, 1), dtype=torch.long)
    return np.asarray(LogitsProcessorList(warpers)(ids, torch.from_numpy(scores[None].copy()))[0])


def possible(scores: np.ndarray) -> set[int]:
    return set(np.flatnonzero(scores > -math.inf).tolist())


@given(SCORES, st.lists(st.integers(0, 39), max_size=60), st.sampled_from([0.5, 1.0, 1.1, 1.3, 2.0]))
def test_repetition_penalty(scores: np.ndarray, ids: list[int], penalty: float) -> None:
    ids = [token % len(scores) for token in ids] or [0]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), torch.from_numpy(scores[None]))[0]
    ours = penalized(scores, np.asarray(ids), penalty)
    # a quotient may differ by a rounding where the library multiplies with the reciprocal
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=2e-7)


@given(SCORES, st.integers(1, 45))
def test_top_k(scores: np.ndarray, top_k: int) -> None:
    kept = {token for token in largest(scores, top_k).tolist() if scores[token] > -math.inf}
    assert kept == possible(kept_by_transformers(scores, TopKLogitsWarper(top_k)))


@settings(deadline=None)
@given(SCORES, st.floats(0.01, 0.999))
def test_top_p(scores: np.ndarray, top_p: float) -> None:
    """Of equal scores transformers keeps any, and here those of the lowest index; so scores are compared."""
    mass = weights(scores, 1.0)
    kept = nucleus(mass, top_p)
    for other in (top_p - 1e-5, top_p + 1e-5):  # a sum in float32 is a few millionths off
        assume(len(nucleus(mass, other)) == len(kept))
    theirs = kept_by_transformers(scores, TopPLogitsWarper(top_p))
    assert sorted(scores[kept]) == sorted(theirs[theirs > -math.inf])
    by_index = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    assert kept.tolist() == by_index[: len(kept)]


@given(SCORES, st.floats(0.001, 1.0))
def test_min_p(scores: np.ndarray, min_p: float) -> None:
    mass = weights(scores, 1.0)
    kept = at_least(mass, min_p)
    for other in (min_p * (1 - 1e-5), min(1.0, min_p * (1 + 1e-5))):
        assume(len(at_least(mass, other)) == len(kept))
    assert set(kept.tolist()) == possible(kept_by_transformers(scores, MinPLogitsWarper(min_p)))


@settings(deadline=None, max_examples=300)
@given(SCORES, TEMPERATURES, st.integers(0, 20), st.floats(0.1, 1.0), st.floats(0.0, 0.5))
def test_all_of_them_in_turn(scores: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    """What may be drawn, and how likely each is, with every filter at once."""

    def ours(top_p: float, min_p: float) -> np.ndarray:
        tokens = largest(scores, top_k)
        mass = weights(scores[tokens], temperature)
        kept = nucleus(mass, top_p)
        kept = kept[at_least(mass[kept], min_p)]
        dense = np.zeros(len(scores))
        dense[tokens[kept]] = mass[kept] / mass[kept].sum()
        return dense

    found = ours(top_p, min_p)
    for near in ((top_p * (1 - 1e-5), min_p), (min(1, top_p * (1 + 1e-5)), min_p), (top_p, min_p * (1 + 1e-5))):
        assume((ours(*near) > 0).sum() == (found > 0).sum())
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    theirs = torch.from_numpy(kept_by_transformers(scores, *warpers, MinPLogitsWarper(min_p))).softmax(dim=-1)
    mine, due = np.sort(found[found > 0]), np.sort(np.asarray(theirs[theirs > 0]))
    # the library adds up in float32, in which what is less likely than 1e-38 is impossible
    np.testing.assert_allclose(mine[-len(due) :], due, rtol=1e-4, atol=1e-30)
    assert (mine[: len(mine) - len(due)] < 1e-37).all()


def test_nucleus_of_a_large_vocabulary() -> None:
    mass = np.random.default_rng(0).dirichlet(np.full(200_000, 0.01))
    order = np.argsort(-mass, kind="stable")
    for top_p in (1e-6, 0.5, 0.9, 0.999):
        count = int((np.cumsum(mass[order]) < top_p).sum()) + 1
        assert nucleus(mass, top_p).tolist() == order[:count].tolist()


def test_nucleus_without_a_limit_is_every_possible_token() -> None:
    assert nucleus(np.array([0.5, 0.0, 1e-300, 0.5]), 1.0).tolist() == [0, 2, 3]
