"""The sampler against plain definitions: greedy, softmax at a temperature, nucleus, streams of random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from l4export.errors import InputError
from l4export.runtimes.sampling import Sampler, _nucleus

LOGITS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-50, 50, width=32) | st.sampled_from([0.0, 1.0, -math.inf]),
).filter(lambda logits: bool(np.isfinite(logits).any(axis=1).all()))
TOP_P = st.floats(0.01, 0.999) | st.just(1.0)
SETTINGS = {"temperature": st.floats(0.05, 5), "top_p": TOP_P, "seed": st.integers(0, 9)}


def softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    mass = [math.exp((float(x) - float(row.max())) / temperature) for x in row]
    return np.array(mass) / math.fsum(mass)


def nucleus(mass: np.ndarray, top_p: float) -> set[int]:
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
    tokens = Sampler()(logits)
    assert tokens.dtype == np.int64 and tokens.shape == (len(logits),)
    assert tokens.tolist() == [row.tolist().index(max(row.tolist())) for row in logits]


@given(LOGITS, st.floats(0.01, 0.999))
def test_nucleus_is_the_plain_definition(logits: np.ndarray, top_p: float) -> None:
    for row in logits:
        mass = softmax(row, 1.0)
        assert set(_nucleus(mass, top_p).tolist()) == nucleus(mass, top_p)


def test_nucleus_of_a_large_vocabulary() -> None:
    mass = np.random.default_rng(0).dirichlet(np.full(200_000, 0.01))
    order = np.argsort(-mass, kind="stable")
    for top_p in (1e-6, 0.5, 0.9, 0.999):
        count = int((np.cumsum(mass[order]) < top_p).sum()) + 1
        assert _nucleus(mass, top_p).tolist() == order[:count].tolist()


def test_nucleus_without_a_limit_is_every_possible_token() -> None:
    assert _nucleus(np.array([0.5, 0.0, 1e-300, 0.5]), 1.0).tolist() == [0, 2, 3]


@settings(deadline=None)
@given(LOGITS, st.fixed_dictionaries(SETTINGS))
def test_only_tokens_of_the_nucleus_are_drawn(logits: np.ndarray, options: dict[str, float]) -> None:
    sampler = Sampler(**options)
    allowed = [_nucleus(softmax(row, options["temperature"]), options["top_p"] * (1 - 1e-12)) for row in logits]
    wider = [_nucleus(softmax(row, options["temperature"]), min(1, options["top_p"] * (1 + 1e-12))) for row in logits]
    for _ in range(5):
        for row, token in enumerate(sampler(logits)):  # the margins are for sums that round differently here and there
            assert token in allowed[row] or token in wider[row]
            assert logits[row, token] > -math.inf


@settings(deadline=None)
@given(LOGITS, st.fixed_dictionaries(SETTINGS))
def test_a_row_depends_neither_on_the_others_nor_on_their_number(logits: np.ndarray, options: dict[str, float]) -> None:
    whole, again, first, changed = (Sampler(**options) for _ in range(4))
    for _ in range(4):
        tokens = whole(logits)
        assert tokens.tolist() == again(logits).tolist()
        assert tokens[0] == first(logits[:1])[0]
        others = np.concatenate([np.zeros_like(logits[:-1]), logits[-1:]])
        assert tokens[-1] == changed(others)[-1]


def test_a_row_that_joins_later_changes_no_earlier_one() -> None:
    logits = np.zeros((3, 1000), np.float32)
    grown, whole = Sampler(1.0, seed=5), Sampler(1.0, seed=5)
    assert grown(logits[:1])[0] == whole(logits)[0]
    assert grown(logits)[0] == whole(logits)[0]


def test_rows_and_seeds_have_streams_of_their_own() -> None:
    logits = np.zeros((8, 100_000), np.float32)
    assert len(set(Sampler(1.0, seed=1)(logits).tolist())) == 8
    assert Sampler(1.0, seed=1)(logits).tolist() != Sampler(1.0, seed=2)(logits).tolist()
    assert Sampler(1.0)(logits).tolist() != Sampler(1.0)(logits).tolist()


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 1.5, "top_p": 0.8}])
@pytest.mark.parametrize("along", ["rows", "calls"])
def test_frequencies(options: dict[str, float], along: str) -> None:
    """Within 5 standard deviations of a binomial count: a right sampler misses that once in 1.7 million counts."""
    row, draws = np.array([2.0, -1.0, 0.5, -math.inf, 1.9, 0.5], np.float32), 10_000
    sampler = Sampler(**options, seed=0)
    if along == "rows":
        drawn = sampler(np.tile(row, (draws, 1)))
    else:
        drawn = np.concatenate([sampler(row[None]) for _ in range(draws)])
    mass = softmax(row, options["temperature"])
    kept = sorted(nucleus(mass, options.get("top_p", 1.0)))
    expected = np.zeros(len(row))
    expected[kept] = mass[kept] / mass[kept].sum()
    counts = np.bincount(drawn, minlength=len(row))
    assert (np.abs(counts - draws * expected) <= 5 * np.sqrt(draws * expected * (1 - expected))).all()


@pytest.mark.parametrize("temperature", [5e-324, 1e-30])
def test_a_tiny_temperature_is_nearly_greedy(temperature: float) -> None:
    logits = np.array([[1.0, 3.0, -math.inf, 2.0], [3.4e38, -3.4e38, 0.0, 0.0]], np.float32)
    assert Sampler(temperature, seed=0)(logits).tolist() == [1, 0]


def test_a_huge_temperature_still_forbids_masked_tokens() -> None:
    logits = np.tile(np.array([1.0, -math.inf, 2.0], np.float32), (100, 1))
    assert set(Sampler(1e308, seed=0)(logits).tolist()) == {0, 2}


@pytest.mark.parametrize("vocab", [1, 256, 1000])
def test_a_top_p_of_next_to_nothing_among_equals(vocab: int) -> None:
    """1 - top_p is 1 in float64, and no token weighs more than 1 / vocab."""
    assert Sampler(1.0, top_p=1e-17, seed=0)(np.zeros((2, vocab), np.float32)).tolist() == [0, 0]


def test_a_tiny_top_p_is_greedy() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    assert Sampler(1.0, top_p=1e-9, seed=0)(logits).tolist() == Sampler()(logits).tolist()


def test_an_empty_batch_has_no_tokens() -> None:
    for sampler in (Sampler(), Sampler(1.0)):
        tokens = sampler(np.zeros((0, 5), np.float32))
        assert tokens.shape == (0,) and tokens.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", value) for value in (-0.1, math.nan, math.inf)]
    + [("top_p", value) for value in (0.0, -0.5, 1.01, math.nan)]
    + [("seed", -1)],
)
def test_invalid_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{name} is {value}: give "):
        Sampler(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.0, math.nan], "row 1 contain NaN: "),
        ([math.inf, math.nan], "row 1 contain NaN: "),
        ([math.inf, -math.inf], r"row 1 contain \+inf: "),
        ([-math.inf, -math.inf], "row 1 are all -inf: "),
    ],
)
def test_rows_without_a_distribution_are_refused(temperature: float, bad: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Sampler(temperature)(np.array([[0.0, 1.0], bad], np.float32))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(5,), (1, 2, 5), (2, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        Sampler()(np.zeros(shape, np.float32))
