"""What is taken for a near tie, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from near_ties import departures

from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.filters import weights
from l4export.runtimes.sampling.random_stream import uniform
from l4export.runtimes.sampling.sampler import Sampler
from l4export.runtimes.sampling.settings import Sampling

GREEDY, DRAWN, COUNT = Sampling(), Sampling(temperature=0.8, seed=4), 20
each_sampling = pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])


@pytest.fixture(scope="module")
def prompt(kjv: Engine) -> list[int]:
    assert kjv.text is not None
    return kjv.text.encode("And it came to pass")


def beyond(logits: np.ndarray, sampling: Sampling, draw: int) -> tuple[int, float]:
    """The token that is nearest to being chosen, and how far it is from that, as the bounds of near ties measure it."""
    if sampling == GREEDY:
        second, first = np.argsort(logits)[-2:]
        return int(second), float((logits[first] - logits[second]) / np.abs(logits).max())
    cumulative, number = np.cumsum(weights(logits, 0.8)), uniform(4, 0, draw)
    at = int(np.searchsorted(cumulative, number, side="right"))
    below, above = number - cumulative[at - 1], cumulative[at] - number
    return (at - 1, float(below)) if below < above else (at + 1, float(above))


def answer(kjv: Engine, prompt: list[int], sampling: Sampling, departing: int | None) -> tuple[str, float]:
    """The text of an answer that takes another token once, and how far that is from being chosen."""
    session, tokens, distance = kjv.session(), list[int](), 0.0
    logits = session.append(prompt, last_only=True)[0, 0]
    for draw in range(COUNT):
        token = Sampler(sampling)(logits, draw)
        if draw == departing:
            token, distance = beyond(logits, sampling, draw)
        tokens.append(token)
        logits = session.append([token], last_only=True)[0, 0]
    assert kjv.text is not None
    return kjv.text.decode(tokens), distance


@each_sampling
def test_what_the_runtime_says_departs_nowhere(kjv: Engine, prompt: list[int], sampling: Sampling) -> None:
    text, _ = answer(kjv, prompt, sampling, None)
    generation = kjv.generate(prompt, COUNT, sampling)
    list(generation)
    assert generation.text == text and departures(kjv, prompt, COUNT, sampling, text) == 0


@each_sampling
@pytest.mark.parametrize("departing", [0, 7])
def test_another_token_is_allowed_within_the_bound_alone(
    kjv: Engine, prompt: list[int], sampling: Sampling, departing: int
) -> None:
    text, distance = answer(kjv, prompt, sampling, departing)
    bound = "apart" if sampling == GREEDY else "beside"
    assert departures(kjv, prompt, COUNT, sampling, text, **{bound: 1.01 * distance}) == 1
    for narrow in ({bound: 0.99 * distance}, {}):
        with pytest.raises(AssertionError, match=f"token {departing}: .* takes none of"):
            departures(kjv, prompt, COUNT, sampling, text, **narrow)


def test_an_answer_that_ends_early_or_goes_on_is_no_near_tie(kjv: Engine, prompt: list[int]) -> None:
    text, _ = answer(kjv, prompt, GREEDY, None)
    for wrong in (text[:-4], text + " and"):
        with pytest.raises(AssertionError):
            departures(kjv, prompt, COUNT, GREEDY, wrong)
