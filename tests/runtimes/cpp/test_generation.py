"""Generation of the native library against the Python runtime's: tokens, texts, ends, failures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.settings import Sampling
from native_generation import L4Token, NativeGeneration
from native_library import NativeError
from native_sampling import L4Sampling, native_sampling, settings_of
from native_session import NativeEngine
from native_tokenizer import NativeTokenizer
from workshop import LAYOUTS, ROOT, VARIANTS, Workshop, random_ids

PROMPTS = [random_ids(n, seed=n).tolist() for n in (12, 70, 5)]
EACH = [
    native_sampling(),
    native_sampling(temperature=1.0, seed=5, repetition_penalty=1.3),
    native_sampling(temperature=0.8, top_k=20, min_p=0.02, seed=5),
]
BAD_INPUT = 2


@pytest.fixture(scope="module")
def path(workshop: Workshop) -> Path:
    return workshop.engine_path("scout", "chunked")


@pytest.fixture(scope="module")
def engine(path: Path) -> NativeEngine:
    return NativeEngine(path)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example, which has a tokenizer."""
    path = tmp_path_factory.mktemp("speaking") / "kjv"
    build(ROOT / "examples/kjv/model", path, BuildOptions(max_context=256))
    return path


def both(
    path: Path, prompts: list[list[int]], count: int, sampling: list[L4Sampling], logprobs: int = 2, **options: Any
) -> tuple[NativeGeneration, Any]:
    """The same generation of both runtimes, at its end; with the same ids, texts, reasons and log probabilities."""
    texts = "stop_strings" in options
    native = NativeEngine(path)
    given = {**options, "tokenizer": NativeTokenizer(path)} if texts else options
    found = NativeGeneration(native.session(len(prompts)), prompts, count, sampling, logprobs=logprobs, **given).run()
    python = runtimes.load(path, threads=1)
    due = python.generate_batch(prompts, count, [settings_of(each) for each in sampling], logprobs=logprobs, **options)
    list(due)
    for row, other in zip(found.rows, due.rows, strict=True):
        assert (row.tokens, row.finish_reason) == (other.tokens, other.finish_reason)
        for (logprob, top), each in zip(row.logprobs, other.logprobs, strict=True):
            np.testing.assert_allclose(logprob, each.logprob, atol=1e-6)
            assert [token for token, _ in top] == [token for token, _ in each.top]
    if texts:
        assert [row.text for row in found.rows] == due.texts
    return found, due


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_variants_say_what_they_say_in_python(workshop: Workshop, variant: str, layout: str) -> None:
    both(workshop.engine_path(variant, layout), PROMPTS, 20, EACH, stop_token_ids=[])


def test_steps_and_one_call_say_the_same(engine: NativeEngine) -> None:
    whole = NativeGeneration(engine.session(3), PROMPTS, 12, EACH, []).run()
    steps = NativeGeneration(engine.session(3), PROMPTS, 12, EACH, []).start()
    assert len(list(steps.steps())) == 12 and steps.step() == []
    assert steps.rows == whole.rows


def test_one_sampling_for_all_is_a_stream_for_each(path: Path, engine: NativeEngine) -> None:
    """What Python makes of a single `Sampling`: a caller of C gives each row the number of its stream."""
    each = [native_sampling(row, temperature=1.0, seed=7) for row in range(3)]
    found = NativeGeneration(engine.session(3), PROMPTS, 12, each, []).run()
    due = runtimes.load(path, threads=1).generate_batch(PROMPTS, 12, Sampling(1.0, seed=7), [])
    list(due)
    assert [row.tokens for row in found.rows] == [row.tokens for row in due.rows]
    alike = NativeGeneration(engine.session(2), [PROMPTS[0]] * 2, 12, [each[0]] * 2, []).run()
    assert alike.rows[0].tokens == alike.rows[1].tokens
    fresh = NativeGeneration(engine.session(2), [PROMPTS[0]] * 2, 12, [native_sampling(temperature=1.0)] * 2, []).run()
    assert fresh.rows[0].tokens != fresh.rows[1].tokens


class TestText:
    def prompts(self, path: Path) -> list[list[int]]:
        codec = NativeTokenizer(path)
        return [codec.encode(text) for text in ("In the beginning", "And God said, Let there be", "ye")]

    def test_text_is_that_of_python(self, speaking: Path) -> None:
        found, _ = both(speaking, self.prompts(speaking), 60, EACH, stop_strings=[])
        assert all(row.text for row in found.rows)

    @pytest.mark.parametrize("stops", [["the"], [" th", "the", "."], ["e", "ea"], ["nowhere to be found", ", and the"]])
    def test_stop_strings(self, speaking: Path, stops: list[str]) -> None:
        both(speaking, self.prompts(speaking), 60, EACH, stop_strings=stops)

    def test_it_stops_at_the_end_of_text(self, speaking: Path) -> None:
        """By default at the model's end-of-sequence tokens: forbid all others."""
        end = runtimes.load(speaking, threads=1).config.eos_token_ids[0]

        def ends(user: Any, ids: Any, count: int, scores: Any, vocab: int) -> int:
            for token in range(vocab):
                scores[token] = scores[token] if token == end else -math.inf
            return 0

        session = NativeEngine(speaking).session()
        found = (
            NativeGeneration(session, self.prompts(speaking)[:1], 9, [native_sampling(processor=ends)]).run().rows[0]
        )
        assert found.tokens == [end] and found.finish_reason == "stop token"

    def test_without_a_tokenizer(self, engine: NativeEngine) -> None:
        with pytest.raises(NativeError, match="stop_strings are looked for in the text"):
            NativeGeneration(engine.session(), PROMPTS[:1], stop_strings=["a"]).start()
        assert NativeGeneration(engine.session(), PROMPTS[:1], 3).run().rows[0].text == ""


class TestWhyItEnds:
    def test_a_full_session(self, engine: NativeEngine) -> None:
        row = NativeGeneration(engine.session(capacity=14), PROMPTS[:1], 9, stop_token_ids=[]).run().rows[0]
        assert len(row.tokens) == 3 and row.finish_reason == "max_context"

    def test_the_last_position(self, engine: NativeEngine) -> None:
        session = engine.session(2, starts=[0, 240])
        rows = NativeGeneration(session, [PROMPTS[0]] * 2, 8, stop_token_ids=[]).run().rows
        assert [len(row.tokens) for row in rows] == [8, 5]
        assert [row.finish_reason for row in rows] == ["max_new_tokens", "max_context"]

    def test_the_caller_stops_a_row(self, engine: NativeEngine) -> None:
        """In the callback, or between steps; the other rows go on as before."""
        free = NativeGeneration(engine.session(3), PROMPTS, 9, EACH, []).run()

        def stops(token: L4Token) -> int:
            return int(token.row == 1 and len(called.rows[1].tokens) == 4)

        called = NativeGeneration(engine.session(3), PROMPTS, 9, EACH, [])
        called.run(stops)
        steps = NativeGeneration(engine.session(3), PROMPTS, 9, EACH, []).start()
        for step in steps.steps():
            if len(steps.rows[1].tokens) == 4 and step[1] is not None:
                steps.stop(1)
        for stopped in (called, steps):
            assert [row.tokens for row in stopped.rows] == [
                free.rows[0].tokens,
                free.rows[1].tokens[:4],
                free.rows[2].tokens,
            ]
            assert stopped.rows[1].finish_reason is None


class TestSessions:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_turns(self, workshop: Workshop, layout: str) -> None:
        """A session that goes on says what a new one says to all of it; it holds all tokens but the last."""
        engine = NativeEngine(workshop.engine_path("scout", layout))
        session = engine.session()
        said = PROMPTS[0] + NativeGeneration(session, PROMPTS[:1], 20, EACH[1:2], []).run().rows[0].tokens
        assert session.token_ids() == said[:-1]
        second = NativeGeneration(session, [[said[-1], 7, 8]], 20, EACH[1:2], []).run().rows[0].tokens
        python = workshop.engine("scout", layout)
        assert second == list(python.generate([*said, 7, 8], 20, settings_of(EACH[1]), ()))

    def test_rows_without_a_prompt_take_no_part(self, engine: NativeEngine) -> None:
        session = engine.session(3)
        found = NativeGeneration(session, [PROMPTS[0], [], PROMPTS[2]], 6, EACH, []).run()
        assert found.rows[1].tokens == [] and session.lengths == [17, 0, 10]
        alone = NativeGeneration(engine.session(), PROMPTS[:1], 6, EACH[:1], []).run()
        assert found.rows[0].tokens == alone.rows[0].tokens

    def test_a_session_that_was_changed(self, engine: NativeEngine) -> None:
        session = engine.session()
        generation = NativeGeneration(session, PROMPTS[:1], 6, EACH[:1], []).start()
        generation.step()
        session.append([[1]])
        with pytest.raises(NativeError, match=r"^the session was changed while this generation ran"):
            generation.step()

    def test_it_outlives_the_handles_of_session_and_engine(self, path: Path) -> None:
        engine = NativeEngine(path)
        generation = NativeGeneration(engine.session(), PROMPTS[:1], 6, EACH[1:2], []).start()
        due = NativeGeneration(engine.session(), PROMPTS[:1], 6, EACH[1:2], []).run().rows
        generation.step()
        generation.session.close()
        del engine
        list(generation.steps())
        assert generation.rows == due
        generation.close()

    def test_a_failure_can_be_tried_again(self, engine: NativeEngine) -> None:
        """Of a processor: the logits are there already. The tokens are those of a generation that has not failed."""
        failures = [2, 5]

        def fails(user: Any, ids: Any, count: int, scores: Any, vocab: int) -> int:
            if failures and count == len(PROMPTS[2]) + failures[0]:
                failures.pop(0)
                return 9
            return 0

        each = [EACH[0], EACH[1], native_sampling(temperature=0.8, top_k=20, min_p=0.02, seed=5, processor=fails)]
        due = NativeGeneration(engine.session(3), PROMPTS, 8, EACH, []).run().rows
        generation = NativeGeneration(engine.session(3), PROMPTS, 8, each, []).start()
        failed = 0
        while True:
            try:
                if not generation.step():
                    break
            except NativeError as error:
                assert str(error) == "the logits processor failed with 9" and error.status == BAD_INPUT
                failed += 1
        assert failed == 2 and generation.rows == due

    def test_a_session_in_use(self, engine: NativeEngine) -> None:
        """The session belongs to the call, also while the callback runs."""
        session = engine.session()
        refused: list[str] = []

        def uses(token: L4Token) -> int:
            try:
                session.append([[1]])
            except NativeError as error:
                refused.append(str(error))
            return 0

        NativeGeneration(session, PROMPTS[:1], 2, EACH[:1], []).run(uses)
        assert len(refused) == 2
        assert refused[0].startswith("the session is in use: generate runs in this thread;")


class TestRefusals:
    """Everything is checked when it begins, with Python's words where there are any."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number, 1 or more"),
            ({"stop_token_ids": [300]}, "a token of stop_token_ids is 300: give a whole number, 0 to 255"),
            ({"stop_token_ids": [-1]}, "a token of stop_token_ids is -1: give a whole number, 0 to 255"),
            ({"logprobs": 257}, "logprobs is 257: give a whole number, 0 to 256"),
        ],
    )
    def test_options(self, workshop: Workshop, engine: NativeEngine, options: dict[str, Any], message: str) -> None:
        with pytest.raises(NativeError) as error:
            NativeGeneration(engine.session(), PROMPTS[:1], **options).start()
        with pytest.raises(InputError) as due:
            workshop.engine("scout", "chunked").generate(PROMPTS[0], **options)
        assert str(error.value) == str(due.value) == message and error.value.status == BAD_INPUT

    @pytest.mark.parametrize(
        "prompts",
        [[[]], [[1], [2]], [[256]], [[-1]], [[1] * 257], []],
        ids=["empty", "two", "id", "negative", "long", "none"],
    )
    def test_prompts(self, workshop: Workshop, engine: NativeEngine, prompts: list[list[int]]) -> None:
        python = workshop.engine("scout", "chunked")
        with pytest.raises(NativeError) as error:
            NativeGeneration(engine.session(), prompts).start()
        with pytest.raises(InputError) as due:
            python.generate_batch(prompts, session=python.session())
        assert str(error.value) == str(due.value) and error.value.status == BAD_INPUT

    def test_sampling(self, engine: NativeEngine) -> None:
        with pytest.raises(NativeError, match=r"^top_p is 1\.5: give a number above 0 and up to 1"):
            NativeGeneration(engine.session(), PROMPTS[:1], sampling=[native_sampling(top_p=1.5)]).start()

    def test_stop_strings(self, speaking: Path) -> None:
        session, codec = NativeEngine(speaking).session(), NativeTokenizer(speaking)
        for stops in ([""], ["a"] * 65, ["a" * 1025]):
            with pytest.raises(NativeError, match=r"^stop_strings") as error:
                NativeGeneration(session, [[1]], stop_strings=stops, tokenizer=codec).start()
            assert error.value.status == BAD_INPUT


def test_python_and_native_engines_share_settings(engine: NativeEngine, workshop: Workshop) -> None:
    """Sampling that changes from token to token by a processor, on a vocabulary that both see alike."""
    seen: list[list[int]] = []

    def looks(user: Any, ids: Any, count: int, scores: Any, vocab: int) -> int:
        seen.append(ids[:count])
        scores[ids[count - 1]] = -math.inf
        return 0

    def same(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[ids[-1]] = -math.inf
        return scores

    sampling = native_sampling(temperature=1.0, seed=3, processor=looks)
    found = NativeGeneration(engine.session(), PROMPTS[:1], 8, [sampling], []).run().rows[0].tokens
    python: Engine = workshop.engine("scout", "chunked")
    assert found == list(python.generate(PROMPTS[0], 8, Sampling(1.0, seed=3, logits_processor=[same]), ()))
    assert seen == [PROMPTS[0] + found[:n] for n in range(8)]
