"""Arguments of public calls: refused when the call is made, by name, in one line; never another library's error."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export import runtimes
from l4export.errors import InputError
from l4export.runtimes.arguments import shown
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.sampler import Sampler
from l4export.runtimes.sampling.settings import Sampling
from workshop import Workshop

NO_WHOLE_NUMBER = ["2", 2.0, True, np.True_, np.float32(2), math.nan, None, [2.0], b"2", 2j, {}, np.zeros(3), object()]
NO_NUMBER = ["1", True, None, [1.0], math.nan, math.inf, np.float32("nan"), 10**400, 1j, b"1", np.zeros(2), object()]
NO_FLAG = ["yes", 1, 0, None, np.zeros(2)]
NO_PATH = [5, None, b"engine", "", "a\0b", ["engine"]]
NO_IDS: list[Any] = [
    *("12", b"12", 5, None, 1.5, True, {1, 2}, {1: 2}, iter([1]), np.int64(3), np.array(3), object()),
    *([1.5], ["1"], [True, False], [1, True], [1, np.True_], [None], [1, [2]], [[1], [2]], [[[1]]], [{}], [1j]),
    *([-1], [256], [2**63], [2**64], [-(2**70)], [1, math.nan], np.zeros(2), np.array(["1"]), np.zeros((1, 1, 1), int)),
]


def named(value: object) -> str:
    """Of a test: no address may be in it, or workers that run side by side would not agree on the tests."""
    return re.sub(r" at 0x\w+", "", f"{type(value).__name__} {value!r}")[:40]


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError


class Loud:
    def __repr__(self) -> str:
        return "a\nb" * 1000


@pytest.fixture(scope="module")
def engine(workshop: Workshop) -> Engine:
    return workshop.engine("scout", "static")


def refused(call: Callable[[], object], *words: str) -> None:
    """In one line of readable length that begins with one of the words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert message.startswith(words), message


@pytest.mark.parametrize("value", NO_WHOLE_NUMBER, ids=named)
def test_whole_numbers(engine: Engine, value: Any) -> None:
    session = engine.session(batch=2)
    session.append([[1, 2, 3], [4, 5, 6]])
    refused(lambda: engine.session(batch=value), "batch is")
    refused(lambda: engine.generate([1], max_new_tokens=value), "max_new_tokens is")
    refused(lambda: engine.generate_batch([[1]], max_new_tokens=value), "max_new_tokens is")
    refused(lambda: engine.generate([1], stop_token_ids=[value]), "a token of stop_token_ids is")
    refused(lambda: engine.session(start=value), "start is")
    refused(lambda: session.rewind(value), "tokens is")
    refused(lambda: session.tokens(value), "row is")
    if value is not None:
        refused(lambda: engine.session(capacity=value), "capacity is")
        refused(lambda: Sampling(seed=value), "seed is")
        refused(lambda: engine.generate([1], logprobs=value), "logprobs is")
        refused(lambda: runtimes.load(engine.directory, threads=value), "threads is")
        refused(lambda: session.fork(value), "rows are")
    assert session.lengths.tolist() == [3, 3]


@pytest.mark.parametrize("value", NO_NUMBER, ids=named)
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_numbers(name: str, value: Any) -> None:
    refused(lambda: Sampling(**{name: value}), f"{name} is")


@pytest.mark.parametrize("value", [0.7, "greedy", {}, [], [1], [Sampling(), None], Sampling, object()], ids=named)
def test_sampling(engine: Engine, value: Any) -> None:
    refused(lambda: engine.generate([1], sampling=value), "sampling is")
    refused(lambda: engine.generate_batch([[1], [2]], sampling=value), "sampling is")
    refused(lambda: engine.generate_batch([[1], [2]], sampling=[Sampling()]), "sampling is given for 1 rows")


@pytest.mark.parametrize("value", [5, None, "", [""], [1], ["a", None], {"a"}, b"a", iter("a")], ids=named)
def test_stop_strings(engine: Engine, value: Any) -> None:
    refused(lambda: engine.generate([1], stop_strings=value), "stop_strings is")
    refused(lambda: engine.generate([1], stop_strings="x" * 1025), "stop_strings: at most")
    refused(lambda: engine.generate([1], stop_strings=["x"] * 65), "stop_strings: at most")


@pytest.mark.parametrize("value", [5, "session", object()], ids=named)
def test_sessions(engine: Engine, value: Any) -> None:
    refused(lambda: engine.generate([1], session=value), "session is")


@pytest.mark.parametrize("value", NO_FLAG, ids=named)
def test_flags(engine: Engine, value: Any) -> None:
    session = engine.session()
    refused(lambda: session.append([1], last_only=value), "last_only is")
    refused(lambda: runtimes.load(engine.directory, verify=value), "verify is")
    assert session.lengths.tolist() == [0]


@pytest.mark.parametrize("value", NO_PATH, ids=named)
def test_paths(engine: Engine, value: Any) -> None:
    session = engine.session()
    refused(lambda: session.save(value), "path is")
    refused(lambda: engine.load_session(value), "path is")
    refused(lambda: runtimes.load(value), "path is")


@pytest.mark.parametrize("value", NO_IDS, ids=named)
def test_token_ids(engine: Engine, value: Any) -> None:
    session = engine.session()
    refused(lambda: session.append(value), "token ids must be", "row 0: token ", "2 rows of token ids")
    refused(lambda: engine.generate(value), "token ids must be", "row 0: token ")
    if not isinstance(value, list | np.ndarray) or np.ndim(np.asarray(value, dtype=object)) != 2:
        refused(lambda: engine.generate_batch(value), "prompts must be", "row ")
    refused(lambda: engine.generate_batch([[1], value]), "prompts must be", "row 1: token ")
    assert session.lengths.tolist() == [0]


@pytest.mark.parametrize("value", [0, -1, 257, 10**30, -(10**30)])
def test_ranges(engine: Engine, value: int) -> None:
    refused(lambda: engine.session(capacity=value), "capacity is")
    if value < 1 or value > 2**20:
        refused(lambda: engine.session(batch=value), "batch is")
        refused(lambda: runtimes.load(engine.directory, threads=value), "threads is")
    if value < 1:
        refused(lambda: engine.generate([1], value), "max_new_tokens is")
    if value:
        refused(lambda: engine.session(start=value), "start is")
        refused(lambda: engine.session(batch=2, start=[0, value]), "start is")
        refused(lambda: engine.generate([1], stop_token_ids=[1, value]), "a token of stop_token_ids is")
        refused(lambda: engine.session().rewind(value), "tokens is", "row 0: cannot go back")
        refused(lambda: engine.session().tokens(value), "row is")
        refused(lambda: engine.session().fork([0, value]), "rows are")


def test_rows_that_do_not_fit_into_memory(engine: Engine) -> None:
    refused(lambda: engine.session(batch=2**20, capacity=256), "no memory for 1048576 x 256 tokens")


@pytest.mark.parametrize("value", [5, "12", b"12", 1.5, True, Unspeakable()], ids=lambda value: type(value).__name__)
def test_stop_tokens_are_a_collection(engine: Engine, value: Any) -> None:
    refused(lambda: engine.generate([1], stop_token_ids=value), "stop_token_ids is")


def test_what_is_accepted(engine: Engine) -> None:
    """NumPy's scalars and arrays, ranges, tuples, fractions; generators as stop tokens."""
    expected = list(engine.generate([1, 2, 3], 4, stop_token_ids=()))
    for ids in ((1, 2, 3), range(1, 4), np.array([1, 2, 3], np.uint8), [np.int32(1), 2, 3]):
        tokens = engine.generate(ids, np.int64(4), Sampling(np.float32(0), np.int8(0), Fraction(1)), iter(()))
        assert list(tokens) == expected
    assert [row for (row,) in engine.generate_batch(np.array([[1, 2, 3]]), 4, stop_token_ids=())] == expected
    session = engine.session(np.int64(1), np.uint16(9), np.array([2]))
    assert session.append((1, 2), np.True_).shape == (1, 1, 256) and session.capacity == 9
    assert session.fork((np.int64(0), 0)).lengths.tolist() == [2, 2]
    session.rewind(np.array([1], np.uint64))
    assert session.lengths.tolist() == [1]


def test_prompts_are_taken_at_the_call(engine: Engine) -> None:
    """And nothing is computed before a token is asked for."""
    prompt, expected = [1, 2, 3], list(engine.generate([1, 2, 3], 4, stop_token_ids=()))
    tokens = engine.generate(prompt, 4, stop_token_ids=())
    prompt[:] = [999]
    assert list(tokens) == expected
    refused(lambda: engine.generate([]), "a prompt is empty")
    refused(lambda: engine.generate_batch([[1], []]), "a prompt is empty")
    refused(lambda: engine.generate_batch([]), "batch is 0")
    refused(lambda: engine.generate([0] * 257), "row 0: 0 + 257 tokens are more")


@pytest.mark.parametrize(
    "value", [[[0.0, 1.0]], None, "ab", 1.5, np.array([["a"]]), np.array([[None]]), np.zeros((1, 2), bool)]
)
def test_logits(value: Any) -> None:
    refused(lambda: Sampler()(value, 0), "logits are", "logits have")


def test_values_are_shown_in_one_short_line() -> None:
    assert shown(Unspeakable()) == "a value of type Unspeakable"
    assert shown(10**5000) == "a value of type int"
    assert len(shown(Loud())) == 60 and "\n" not in shown(Loud())
    assert shown(np.float32(0.5)) == "0.5"


def test_lengths_are_read_only(engine: Engine, tmp_path: Path) -> None:
    session = engine.session()
    for array in (session.lengths, session.starts, session.state.held):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
