"""Sampling of the native library against the Python runtime's: the same tokens, numbers and refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l4export.errors import InputError
from l4export.runtimes.sampling import filters
from l4export.runtimes.sampling import logprobs as python_logprobs
from l4export.runtimes.sampling.filters import largest, nucleus, weights
from l4export.runtimes.sampling.logprobs import token_logprobs
from l4export.runtimes.sampling.random_stream import uniform
from l4export.runtimes.sampling.sampler import Sampler
from native_library import NativeError
from native_messages import told
from native_sampling import fresh_seed, logprobs, native_sampling, sample, settings_of

MOST = 2**64 - 1


class _LibcNumpy:
    """NumPy with the C library's exp and log, which the native library uses; NumPy's own differ in the last bit."""

    def __getattr__(self, name: str) -> Any:
        return {"exp": self.exp, "log": self.log}.get(name) or getattr(np, name)

    @staticmethod
    def exp(values: np.ndarray) -> np.ndarray:
        return np.array([math.exp(value) for value in values.tolist()])

    @staticmethod
    def log(value: float) -> float:
        return math.log(value)


@pytest.fixture(scope="module", autouse=True)
def _libc_exp() -> Iterator[None]:
    """With the same exp everything must be equal to the last bit; `TestAgainstNumpy` has the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "np", _LibcNumpy())
        patch.setattr(python_logprobs, "np", _LibcNumpy())
        yield


# quarters tie often and stay apart after a division; -inf is a forbidden token
SCORES = st.integers(-60, 60).map(lambda quarters: quarters / 4) | st.just(-math.inf) | st.floats(-50, 50, width=32)
LOGITS = arrays(np.float32, st.integers(1, 40), elements=SCORES).filter(lambda row: bool(np.isfinite(row).any()))
SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.just(0.0) | st.floats(0.05, 5) | st.sampled_from([5e-324, 1e-30, 1e308]),
        "top_k": st.integers(0, 45) | st.just(2**63 - 1),
        "top_p": st.just(1.0) | st.floats(0.01, 0.999) | st.sampled_from([1e-17, 5e-324, 1 - 2**-53]),
        "min_p": st.just(0.0) | st.floats(0, 1) | st.just(1.0),
        "repetition_penalty": st.just(1.0) | st.floats(0.2, 5) | st.sampled_from([1e-30, 1e38]),
        "seed": st.integers(0, 9) | st.just(MOST) | st.integers(0, MOST),
    }
)
NUMBERS = st.integers(0, 9) | st.just(MOST) | st.integers(0, MOST)


@settings(deadline=None, max_examples=300)
@given(LOGITS, SETTINGS, NUMBERS, NUMBERS, st.lists(st.integers(0, 39), max_size=20))
def test_tokens_are_those_of_python(
    logits: np.ndarray, options: dict[str, Any], stream: int, draw: int, ids: list[int]
) -> None:
    ids = [token % len(logits) for token in ids]
    sampling = native_sampling(stream, **options)
    due = told(Sampler(settings_of(sampling), stream), logits, draw, ids)
    assert told(sample, logits, sampling, draw, ids) == due


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3000), SETTINGS)
def test_longer_rows(seed: int, vocab: int, options: dict[str, Any]) -> None:
    """Sums in NumPy's order: blocks of 128 and halves of multiples of 8 occur from 129 entries on."""
    logits = np.random.default_rng(seed).normal(0, 2, vocab).astype(np.float32)
    sampling = native_sampling(3, **options)
    for draw in range(5):
        due = told(Sampler(settings_of(sampling), 3), logits, draw)
        assert told(sample, logits, sampling, draw) == due


@settings(deadline=None)
@given(LOGITS, st.data())
def test_log_probabilities_are_those_of_python(logits: np.ndarray, data: st.DataObject) -> None:
    token, top = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.integers(0, len(logits)))
    assert logprobs(logits, token, top) == token_logprobs(logits, token, top)


def test_log_probabilities_of_a_large_vocabulary() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 200_003).astype(np.float32).round(1)  # with many ties
    for top in (0, 1, 5, 20_000, len(logits)):
        assert logprobs(logits, 17, top) == token_logprobs(logits, 17, top)


def test_what_other_runtimes_must_draw() -> None:
    """The pinned ids of tests/runtimes/sampling/test_sampler.py."""
    logits = np.arange(1000, dtype=np.float32) % 37 / 8
    for options, due in (
        ({"temperature": 1.0}, [455, 131, 912, 733, 184, 195, 480, 727]),
        ({"temperature": 0.7, "top_k": 100, "top_p": 0.9, "min_p": 0.1}, [331, 332, 996, 293, 517, 554, 442, 256]),
    ):
        assert [sample(logits, native_sampling(3, **options, seed=42), draw) for draw in range(8)] == due


@given(NUMBERS, NUMBERS, NUMBERS)
def test_the_random_stream(seed: int, stream: int, draw: int) -> None:
    """Among tokens alike, whose number is the number of the stream: 30 bits of it are seen with two draws."""
    vocab = 1 << 15
    token = sample(np.zeros(vocab, np.float32), native_sampling(stream, temperature=1.0, seed=seed), draw)
    assert token == math.floor(uniform(seed, stream, draw) * vocab)


def test_without_a_seed_it_is_zero() -> None:
    logits = np.zeros(100_000, np.float32)
    assert sample(logits, native_sampling(temperature=1.0)) == sample(logits, native_sampling(temperature=1.0, seed=0))


def test_fresh_seeds_differ() -> None:
    assert len({fresh_seed() for _ in range(100)}) == 100


class TestAgainstNumpy:
    """NumPy's own exp: another last bit changes a token only where a number falls between two neighbours."""

    @pytest.fixture(autouse=True)
    def _own_exp(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filters, "np", np)

    @pytest.mark.parametrize(
        "options",
        [
            {"temperature": 1.0},
            {"temperature": 0.7, "top_p": 0.9},
            {"temperature": 1.3, "top_k": 40},
            {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.1},
        ],
    )
    def test_draws_are_equal(self, options: dict[str, Any]) -> None:
        """2,500 of each, on logits of their own."""
        rng = np.random.default_rng(7)
        sampling = native_sampling(1, **options, seed=MOST)
        python = Sampler(settings_of(sampling), 1)
        for draw in range(2500):
            logits = rng.normal(0, 3, 500).astype(np.float32)
            ids = rng.integers(0, 500, 30)
            assert sample(logits, sampling, draw, ids) == python(logits, draw, ids)

    def test_a_vocabulary_of_200000(self) -> None:
        rng = np.random.default_rng(8)
        for temperature, top_k, top_p in (
            (1.0, 0, 1.0),
            (1.0, 0, 0.95),
            (3.0, 0, 0.999),
            (0.8, 50, 0.9),
            (1.0, 10**5, 1.0),
        ):
            sampling = native_sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=5)
            for draw in range(4):
                logits = rng.normal(0, 3, 200_000).astype(np.float32)
                assert sample(logits, sampling, draw) == Sampler(settings_of(sampling))(logits, draw)

    def test_what_is_left_is_the_nucleus(self) -> None:
        """With temperature and top_k, drawn often enough to see every token that may be drawn."""
        logits = np.array([2.0, -1.0, 0.5, -math.inf, 1.9, 0.5], np.float32)
        sampling = native_sampling(temperature=1.5, top_k=4, top_p=0.8, seed=1)
        tokens = largest(logits, 4)
        due = tokens[nucleus(weights(logits[tokens], 1.5), 0.8)]
        assert {sample(logits, sampling, draw) for draw in range(500)} == set(due.tolist())


class TestProcessors:
    def test_it_sees_prompt_and_answer_after_the_penalty_and_before_greedy(self) -> None:
        seen: list[Any] = []

        def forbids(user: Any, ids: Any, count: int, scores: Any, vocab: int) -> int:
            seen.append((ids[:count], scores[:vocab]))
            scores[2] = -math.inf
            return 0

        logits = np.array([4.0, 1.0, 8.0, -2.0], np.float32)
        for penalty, due in ((2.0, 0), (5.0, 1)):
            assert sample(logits, native_sampling(processor=forbids, repetition_penalty=penalty), 0, [0, 3, 0]) == due
        assert seen[0] == ([0, 3, 0], [2.0, 1.0, 8.0, -4.0])
        assert logits.tolist() == [4.0, 1.0, 8.0, -2.0]  # it has its own

    @pytest.mark.parametrize(
        ("value", "result", "message"),
        [
            (math.nan, 0, "scores of logits processor 0 contain NaN: no token can be chosen; it must leave"),
            (-math.inf, 0, "scores of logits processor 0 are all -inf: "),
            (math.inf, 0, r"scores of logits processor 0 contain \+inf: "),
            (0.0, 7, "the logits processor failed with 7"),
        ],
    )
    def test_what_it_does_is_checked(self, value: float, result: int, message: str) -> None:
        def processor(user: Any, ids: Any, count: int, scores: Any, vocab: int) -> int:
            for token in range(vocab):
                scores[token] = value
            return result

        with pytest.raises(NativeError, match=f"^{message}") as error:
            sample(np.zeros(4, np.float32), native_sampling(processor=processor))
        assert error.value.status == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", value) for value in (-0.1, math.nan, math.inf, -1e-5)]
    + [("top_p", value) for value in (0.0, -0.5, 1.01, math.nan)]
    + [("min_p", value) for value in (-0.1, 1.01, math.nan)]
    + [("repetition_penalty", value) for value in (0.0, -1.0, math.inf)]
    + [("top_k", -1)],
)
def test_settings_are_refused_with_the_same_words(name: str, value: float) -> None:
    sampling = native_sampling(**{name: value})
    with pytest.raises(NativeError) as found:
        sample(np.zeros(3, np.float32), sampling)
    with pytest.raises(InputError) as due:
        settings_of(sampling)
    assert str(found.value) == str(due.value) and found.value.status == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("size", [2, 40])
@pytest.mark.parametrize(
    ("first", "last"),
    [(0.0, math.nan), (math.inf, math.nan), (math.nan, math.inf), (math.inf, -math.inf), (-math.inf, -math.inf)],
)
def test_logits_are_refused_with_the_same_words(temperature: float, size: int, first: float, last: float) -> None:
    logits = np.array([first] * (size - 1) + [last], np.float32)
    with pytest.raises(InputError) as due:
        Sampler(settings_of(native_sampling(temperature=temperature)))(logits, 0)
    assert told(sample, logits, native_sampling(temperature=temperature)) == str(due.value)
    assert told(logprobs, logits, 0, 1) == str(due.value)


@pytest.mark.parametrize("ids", [[5], [-1], [0, 1, 2, 3, 4, 5] * 9])
def test_ids_of_no_tokens_are_refused_with_the_same_words(ids: list[int]) -> None:
    logits, sampling = np.zeros(5, np.float32), native_sampling(repetition_penalty=1.1)
    with pytest.raises(InputError, match="token_ids are") as due:
        Sampler(settings_of(sampling))(logits, 0, ids)
    assert told(sample, logits, sampling, 0, ids) == str(due.value)
    assert sample(logits, native_sampling(), 0, ids) == 0  # nobody looks at them


@pytest.mark.parametrize(("token", "top"), [(-1, 0), (4, 0), (0, 5)])
def test_log_probabilities_of_what_is_not_there(token: int, top: int) -> None:
    with pytest.raises(NativeError, match=r"(token|top) is .*: give a whole number, 0 to [34]$"):
        logprobs(np.zeros(4, np.float32), token, top)


def test_no_logits() -> None:
    with pytest.raises(NativeError, match=r"logits have the shape \[0\]"):
        sample(np.zeros(0, np.float32), native_sampling())


def test_a_struct_of_an_older_program() -> None:
    """It ends before `stream`: what it does not know has its default."""
    sampling = native_sampling(9, temperature=1.0, seed=3)
    sampling.size = type(sampling).stream.offset
    logits = np.zeros(10_000, np.float32)
    assert sample(logits, sampling) == sample(logits, native_sampling(0, temperature=1.0, seed=3))
    sampling.size = 0
    with pytest.raises(NativeError, match="the size of a struct is not set"):
        sample(logits, sampling)
