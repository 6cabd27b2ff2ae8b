"""The sampler against plain definitions: greedy, softmax at a temperature, filters, streams, processors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l4export.errors import InputError
from l4export.runtimes.sampling.filters import nucleus
from l4export.runtimes.sampling.random_stream import uniform
from l4export.runtimes.sampling.sampler import Sampler, samplers
from l4export.runtimes.sampling.settings import Sampling

LOGITS = arrays(
    np.float32,
    st.integers(1, 12),
    elements=st.floats(-50, 50, width=32) | st.sampled_from([0.0, 1.0, -math.inf]),
).filter(lambda logits: bool(np.isfinite(logits).any()))
SETTINGS = {
    "temperature": st.floats(0.05, 5),
    "top_p": st.floats(0.01, 0.999) | st.just(1.0),
    "seed": st.integers(0, 9),
}


def softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    mass = [math.exp((float(x) - float(row.max())) / temperature) for x in row]
    return np.array(mass) / math.fsum(mass)


def plain_nucleus(mass: np.ndarray, top_p: float) -> set[int]:
    """Word for word: take the likeliest token, of equals the lowest, until the mass reaches top_p."""
    taken: set[int] = set()
    total = 0.0
    while total < top_p and len(taken) < np.count_nonzero(mass):
        best = max((token for token in range(len(mass)) if token not in taken), key=lambda token: (mass[token], -token))
        taken.add(best)
        total += mass[best]
    return taken


@given(LOGITS)
def test_greedy_takes_the_likeliest_and_of_equals_the_lowest(logits: np.ndarray) -> None:
    token = Sampler()(logits, 0)
    assert type(token) is int and token == logits.tolist().index(max(logits.tolist()))
    assert token == Sampler(Sampling(top_k=1, top_p=0.1, min_p=0.9, seed=3))(logits, 5)  # no filter counts


@given(LOGITS, st.floats(0.01, 0.999))
def test_nucleus_is_the_plain_definition(logits: np.ndarray, top_p: float) -> None:
    mass = softmax(logits, 1.0)
    assert set(nucleus(mass, top_p).tolist()) == plain_nucleus(mass, top_p)


@settings(deadline=None)
@given(LOGITS, st.fixed_dictionaries(SETTINGS))
def test_only_tokens_of_the_nucleus_are_drawn(logits: np.ndarray, options: dict[str, Any]) -> None:
    sampler, mass = Sampler(Sampling(**options)), softmax(logits, options["temperature"])
    # the margins are for sums that round differently here and there
    allowed = {*nucleus(mass, options["top_p"] * (1 - 1e-12)), *nucleus(mass, min(1, options["top_p"] * (1 + 1e-12)))}
    for draw in range(5):
        token = sampler(logits, draw)
        assert token in allowed and logits[token] > -math.inf


@given(LOGITS, st.integers(0, 2**64 - 1), st.integers(0, 9), st.integers(0, 9))
def test_the_token_is_where_the_random_number_falls(logits: np.ndarray, seed: int, stream: int, draw: int) -> None:
    number, below, due = uniform(seed, stream, draw), 0.0, -1
    for token, share in enumerate(softmax(logits, 1.0)):
        below += share
        if number < below and due < 0:
            due = token
    token = Sampler(Sampling(1.0, seed=seed), stream)(logits, draw)
    assert token == due or abs(number - softmax(logits, 1.0)[: min(token, due) + 1].sum()) < 1e-12


DRAWN = [[455, 131, 912, 733, 184, 195, 480, 727], [331, 332, 996, 293, 517, 554, 442, 256]]


def test_what_other_runtimes_must_draw() -> None:
    """Ids that were drawn once: a change of stream or order is a change for everybody's seeds."""
    logits = np.arange(1000, dtype=np.float32) % 37 / 8
    for options, due in (
        ({"temperature": 1.0}, DRAWN[0]),
        ({"temperature": 0.7, "top_k": 100, "top_p": 0.9, "min_p": 0.1}, DRAWN[1]),
    ):
        sampler = Sampler(Sampling(**options, seed=42), 3)  # type: ignore[arg-type]
        assert [sampler(logits, draw) for draw in range(8)] == due


def test_rows_and_seeds_have_streams_of_their_own() -> None:
    logits = np.zeros(100_000, np.float32)
    rows = [sampler(logits, 0) for sampler in samplers(Sampling(1.0, seed=1), 8)]
    assert len(set(rows)) == 8
    assert rows[:3] == [sampler(logits, 0) for sampler in samplers(Sampling(1.0, seed=1), 3)]
    assert rows[0] == Sampler(Sampling(1.0, seed=1))(logits, 0) != Sampler(Sampling(1.0, seed=2))(logits, 0)
    own = samplers([Sampling(1.0, seed=1), Sampling(1.0, seed=2), Sampling(1.0, seed=1)], 3)
    assert [sampler(logits, 0) for sampler in own] == [rows[0], Sampler(Sampling(1.0, seed=2))(logits, 0), rows[0]]
    fresh = [sampler(logits, 0) for sampler in (*samplers(Sampling(1.0), 2), *samplers([Sampling(1.0)] * 2, 2))]
    assert len(set(fresh)) == 4  # the chance of two alike is 6 in 100,000


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.7}, {"temperature": 1.5, "top_p": 0.8}, {"temperature": 1.0, "top_k": 3, "min_p": 0.3}],
)
def test_frequencies(options: dict[str, Any]) -> None:
    """Within 5 standard deviations of a binomial count: a right sampler misses that once in 1.7 million counts."""
    row, draws = np.array([2.0, -1.0, 0.5, -math.inf, 1.9, 0.5], np.float32), 10_000
    sampler = Sampler(Sampling(**options, seed=0))
    drawn = [sampler(row, draw) for draw in range(draws)]
    mass = softmax(row, options["temperature"])
    kept = sorted(plain_nucleus(mass, options.get("top_p", 1.0)))
    if "top_k" in options:  # 0.5 occurs twice and both are kept; of 0.3 of the likeliest both are less
        kept = [0, 4]
    expected = np.zeros(len(row))
    expected[kept] = mass[kept] / mass[kept].sum()
    counts = np.bincount(drawn, minlength=len(row))
    assert (np.abs(counts - draws * expected) <= 5 * np.sqrt(draws * expected * (1 - expected))).all()


@pytest.mark.parametrize("temperature", [5e-324, 1e-30])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature, seed=0))
    assert sampler(np.array([1.0, 3.0, -math.inf, 2.0], np.float32), 0) == 1
    assert sampler(np.array([3.4e38, -3.4e38, 0.0, 0.0], np.float32), 1) == 0


def test_a_huge_temperature_still_forbids_masked_tokens() -> None:
    sampler, logits = Sampler(Sampling(1e308, seed=0)), np.array([1.0, -math.inf, 2.0], np.float32)
    assert {sampler(logits, draw) for draw in range(100)} == {0, 2}


@pytest.mark.parametrize("vocab", [1, 256, 1000])
def test_a_top_p_of_next_to_nothing_among_equals(vocab: int) -> None:
    """1 - top_p is 1 in float64, and no token weighs more than 1 / vocab."""
    assert Sampler(Sampling(1.0, top_p=1e-17, seed=0))(np.zeros(vocab, np.float32), 0) == 0


class TestProcessors:
    def test_they_see_prompt_and_answer_after_the_penalty_and_before_greedy(self) -> None:
        seen: list[Any] = []

        def forbids(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            seen.append((ids.tolist(), scores.tolist()))
            scores[2] = -math.inf
            return scores

        logits = np.array([4.0, 1.0, 8.0, -2.0], np.float32)
        sampler = Sampler(Sampling(repetition_penalty=2.0, logits_processor=[forbids, lambda ids, scores: -scores]))
        with pytest.raises(InputError, match=r"scores of logits processor 1 contain \+inf"):  # it turns -inf round
            sampler(logits, 0, [0, 3, 0])
        assert seen[0] == ([0, 3, 0], [2.0, 1.0, 8.0, -4.0])
        assert logits.tolist() == [4.0, 1.0, 8.0, -2.0]  # a processor has its own
        assert Sampler(Sampling(repetition_penalty=2.0, logits_processor=[forbids]))(logits, 0, [0, 3, 0]) == 0
        assert Sampler(Sampling(repetition_penalty=5.0, logits_processor=[forbids]))(logits, 0, [0, 3, 0]) == 1

    def test_ids_are_read_only(self) -> None:
        def writes(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            ids[0] = 5
            return scores

        with pytest.raises(ValueError, match="read-only"):
            Sampler(Sampling(logits_processor=[writes]))(np.zeros(4, np.float32), 0, np.array([1, 2]))

    @pytest.mark.parametrize(
        ("processor", "message"),
        [
            (lambda ids, scores: None, "scores of logits processor 1 are a NoneType"),
            (lambda ids, scores: scores[:2], r"scores of logits processor 1 have the shape \[2\]: give \[4\]"),
            (lambda ids, scores: scores * np.nan, "scores of logits processor 1 contain NaN"),
            (lambda ids, scores: scores - math.inf, "scores of logits processor 1 are all -inf"),
        ],
    )
    def test_what_it_returns_is_checked(self, processor: Callable[..., Any], message: str) -> None:
        sampling = Sampling(logits_processor=[lambda ids, scores: scores.astype(np.float64), processor])
        with pytest.raises(InputError, match=message) as caught:
            Sampler(sampling)(np.zeros(4, np.float32), 0)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", value) for value in (-0.1, math.nan, math.inf)]
    + [("top_p", value) for value in (0.0, -0.5, 1.01, math.nan)]
    + [("min_p", value) for value in (-0.1, 1.01, math.nan)]
    + [("repetition_penalty", value) for value in (0.0, -1.0, math.inf)]
    + [("top_k", -1), ("seed", -1), ("seed", 2**64)],
)
def test_invalid_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name} is {value}: give "):
        Sampling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, len, [1], "ab", {len}])
def test_processors_are_a_sequence_of_functions(value: Any) -> None:
    with pytest.raises(InputError, match="logits_processor is"):
        Sampling(logits_processor=value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.0, math.nan], "contain NaN: "),
        ([math.inf, math.nan], "contain NaN: "),
        ([math.inf, -math.inf], r"contain \+inf: "),
        ([1e39, 0.0], r"contain \+inf: "),
        ([-math.inf, -math.inf], "are all -inf: "),
    ],
)
def test_logits_without_a_distribution_are_refused(temperature: float, bad: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Sampler(Sampling(temperature))(np.array(bad), 0)
    assert "\n" not in str(error.value)


def test_a_penalty_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="after the repetition penalty are all -inf"):
        Sampler(Sampling(repetition_penalty=1e38))(np.full(2, -1e5, np.float32), 0, [0, 1])


@pytest.mark.parametrize("shape", [(), (1, 5), (0,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        Sampler()(np.zeros(shape, np.float32), 0)


@pytest.mark.parametrize("ids", [[5], [-1], [[1]], "ab", [True], 1])
def test_ids_of_no_tokens_are_refused(ids: Any) -> None:
    with pytest.raises(InputError, match="token_ids are"):
        Sampler(Sampling(repetition_penalty=1.1))(np.zeros(5, np.float32), 0, ids)


def test_any_float_type() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        assert Sampler()(np.array([0, 2, 1], dtype), 0) == 1
