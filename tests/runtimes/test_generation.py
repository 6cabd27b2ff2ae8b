"""Generation: settings of each row, stop strings, log probabilities, sessions that are continued, failures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tokenizers import byte_level, write_tokenizer

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.text.stop_strings import SpokenText
from workshop import LAYOUTS, Workshop, copy_checkpoint, random_ids

PROMPTS = [random_ids(n, seed=n).tolist() for n in (12, 30, 5)]
EACH = [Sampling(), Sampling(1.0, seed=5, repetition_penalty=1.3), Sampling(0.8, top_k=20, min_p=0.02, seed=5)]


@pytest.fixture(scope="module")
def engine(workshop: Workshop) -> Engine:
    return workshop.engine("scout", "chunked")


@pytest.fixture(scope="module")
def speaking(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine with a tokenizer, of which the model knows the first 256 tokens: special ones, and single bytes."""
    path = tmp_path_factory.mktemp("speaking")
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), path / "c")
    write_tokenizer(checkpoint)
    build(checkpoint, path / "e", BuildOptions(max_context=256))
    return runtimes.load(path / "e", threads=1)


def forbids(*tokens: int) -> Any:
    def processor(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[list(tokens)] = -math.inf
        return scores

    return processor


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_with_settings_of_its_own_says_what_it_says_alone(workshop: Workshop, layout: str) -> None:
    engine = workshop.engine("scout", layout)
    alone = [list(engine.generate(ids, 12, each, ())) for ids, each in zip(PROMPTS, EACH, strict=True)]
    steps = list(engine.generate_batch(PROMPTS, 12, EACH, ()))
    assert [list(row) for row in zip(*steps, strict=True)] == alone
    again = list(engine.generate_batch([PROMPTS[0], PROMPTS[0]], 12, [EACH[1], EACH[1]], ()))
    assert all(first == second for first, second in again)


def test_rows_that_share_a_seed_say_different_things(engine: Engine) -> None:
    steps = list(engine.generate_batch([PROMPTS[0]] * 2, 12, Sampling(1.0, seed=5), ()))
    assert [step[0] for step in steps] != [step[1] for step in steps]
    assert [step[0] for step in steps] == list(engine.generate(PROMPTS[0], 12, Sampling(1.0, seed=5), ()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_with_a_penalty_is_that_of_transformers(workshop: Workshop, layout: str) -> None:
    """Of prompt and answer, over the boundaries of chunks."""
    model = workshop.reference("scout").model
    prompt = PROMPTS[1]
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=1.3, eos_token_id=None
    )
    ours = workshop.engine("scout", layout).generate(prompt, 20, Sampling(repetition_penalty=1.3), ())
    assert list(ours) == theirs[0, len(prompt) :].tolist()
    assert list(workshop.engine("scout", layout).generate(prompt, 20, None, ())) != theirs[0, len(prompt) :].tolist()


def test_log_probabilities_are_those_of_the_logits(engine: Engine) -> None:
    """Of the engine's own: neither penalty nor processors change them."""
    free = list(engine.generate(PROMPTS[0], 1, None, ()))
    sampling = Sampling(0.5, repetition_penalty=1.5, seed=1, logits_processor=[forbids(free[0])])
    generation = engine.generate(PROMPTS[0], 6, sampling, (), logprobs=3)
    tokens = list(generation)
    logits = engine.session().append([*PROMPTS[0], *tokens])[0, len(PROMPTS[0]) - 1 : -1]
    due = torch.from_numpy(logits).double().log_softmax(dim=-1)
    for index, (token, each) in enumerate(zip(tokens, generation.row.logprobs, strict=True)):
        assert each.token == token and each.logprob == pytest.approx(float(due[index, token]), abs=1e-4)
        assert [other for other, _ in each.top] == due[index].topk(3).indices.tolist()
    assert generation.row.logprobs[0].top[0][0] == free[0] != tokens[0]
    assert engine.generate(PROMPTS[0]).row.logprobs == []


class TestWhyItEnds:
    def test_tokens(self, engine: Engine) -> None:
        generation = engine.generate(PROMPTS[0], 3, None, ())
        assert generation.finish_reason is None
        tokens = list(generation)
        assert generation.finish_reason == "max_new_tokens" and generation.row.tokens == tokens
        generation = engine.generate(PROMPTS[0], 3, None, [tokens[0]])
        assert list(generation) == tokens[:1] and generation.finish_reason == "stop token"

    def test_a_full_session(self, engine: Engine) -> None:
        generation = engine.generate(PROMPTS[0], 3, None, (), session=engine.session(capacity=13))
        assert len(list(generation)) == 2 and generation.finish_reason == "max_context"

    def test_the_last_position(self, engine: Engine) -> None:
        """Of a row that begins late: its session has room for more."""
        session = engine.session(batch=2, start=[0, 240])
        batch = engine.generate_batch([PROMPTS[0]] * 2, 8, None, (), session=session)
        assert [len(list(filter(None.__ne__, row))) for row in zip(*batch, strict=True)] == [8, 5]
        assert [row.finish_reason for row in batch.rows] == ["max_new_tokens", "max_context"]

    def test_rows(self, engine: Engine) -> None:
        free = [list(engine.generate(prompt, 12, None, ())) for prompt in PROMPTS[:2]]
        stop = next(token for token in free[0] if token not in free[1])
        batch = engine.generate_batch(PROMPTS[:2], 12, None, [stop])
        list(batch)
        assert [row.finish_reason for row in batch.rows] == ["stop token", "max_new_tokens"]


class TestText:
    def test_pieces_make_the_text(self, speaking: Engine) -> None:
        codec = speaking.text
        assert codec is not None
        generation = speaking.generate(PROMPTS[0], 30, Sampling(1.0, seed=3), ())
        pieces = list(generation.text_pieces())
        assert all(pieces) and "".join(pieces) == generation.text == codec.decode(generation.row.tokens)
        assert list(generation) == [] and len(generation.row.tokens) == 30

    def test_text_that_is_asked_for_late(self, speaking: Engine) -> None:
        whole = speaking.generate(PROMPTS[0], 30, Sampling(1.0, seed=3), ())
        list(whole)
        late = speaking.generate(PROMPTS[0], 30, Sampling(1.0, seed=3), ())
        for _ in range(10):
            next(late)
        assert whole.text.startswith(late.text) and "".join(late.text_pieces()) == whole.text

    def test_a_stop_string_ends_it(self, speaking: Engine) -> None:
        free = speaking.generate(PROMPTS[0], 40, Sampling(1.0, seed=3), ())
        list(free)
        stop = free.text[8:11]
        generation = speaking.generate(PROMPTS[0], 40, Sampling(1.0, seed=3), (), stop_strings=[stop, "never said"])
        session_tokens = list(generation)
        assert generation.finish_reason == "stop string" and generation.row.stop_string == stop
        assert generation.text == free.text[: free.text.index(stop)]
        assert session_tokens == free.row.tokens[: len(session_tokens)] != free.row.tokens
        spoken = SpokenText(speaking.text.stream(), [stop])  # type: ignore[union-attr]
        for count, token in enumerate(free.row.tokens, 1):  # it ends at once
            spoken.push(token)
            if spoken.found:
                assert count == len(session_tokens)
                break

    def test_rows_end_apart(self, speaking: Engine) -> None:
        alone = [speaking.generate(ids, 40, Sampling(1.0, seed=3), ()) for ids in PROMPTS[:2]]
        texts = ["".join(each.text_pieces()) for each in alone]
        stop = next(texts[0][at : at + 2] for at in range(5, 30) if texts[0][at : at + 2] not in texts[1])
        batch = speaking.generate_batch(PROMPTS[:2], 40, [Sampling(1.0, seed=3)] * 2, (), stop_strings=stop)
        list(batch)
        assert batch.texts == [texts[0][: texts[0].index(stop)], texts[1]]
        assert [row.finish_reason for row in batch.rows] == ["stop string", "max_new_tokens"]

    def test_without_a_tokenizer(self, engine: Engine) -> None:
        for call in (
            lambda: engine.generate([1], stop_strings="a"),
            lambda: engine.generate([1]).text,
            lambda: engine.generate([1]).text_pieces(),
            lambda: engine.generate_batch([[1]]).texts,
        ):
            with pytest.raises(InputError, match=r"has no tokenizer\.json, which text and stop strings need"):
                call()


@pytest.mark.parametrize("layout", LAYOUTS)
class TestOnASession:
    def test_turns(self, workshop: Workshop, layout: str) -> None:
        """The session holds all but the last token, so `ids[length:]` of the whole conversation goes on."""
        engine, sampling = workshop.engine("scout", layout), Sampling(1.0, seed=2)
        session, said = engine.session(), list(PROMPTS[1])
        first = list(engine.generate(said, 9, sampling, (), session=session))
        assert first == list(engine.generate(PROMPTS[1], 9, sampling, ()))
        said += first
        assert session.lengths.tolist() == [len(said) - 1]
        said += [7, 8, 9]
        rest = said[int(session.lengths[0]) :]
        assert rest == [first[-1], 7, 8, 9]
        assert list(engine.generate(rest, 9, sampling, (), session=session)) == list(
            engine.generate(said, 9, sampling, ())
        )

    def test_penalty_and_processors_see_all_of_a_row(self, workshop: Workshop, layout: str) -> None:
        """What the session held too, also after going back, and in a copy."""
        engine, seen = workshop.engine("scout", layout), []

        def looks(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            seen.append(ids.tolist())
            return scores

        sampling = Sampling(repetition_penalty=1.5, logits_processor=[looks])
        expected = list(engine.generate(PROMPTS[1], 6, sampling, ()))
        session = engine.session()
        session.append([*PROMPTS[1][:20], 250, 251])
        session.rewind(2)
        session = session.fork()
        seen.clear()
        assert list(engine.generate(PROMPTS[1][20:], 6, sampling, (), session=session)) == expected
        assert seen == [[*PROMPTS[1], *expected[:count]] for count in range(6)]

    def test_rows_without_a_prompt_take_no_part(self, workshop: Workshop, layout: str) -> None:
        engine = workshop.engine("scout", layout)
        session = engine.session(batch=3)
        session.append([[1, 2], [3], [4, 5, 6]])
        batch = engine.generate_batch([[9], [], [10, 11]], 5, None, (), session=session)
        steps = list(batch)
        assert all(step[1] is None for step in steps) and session.lengths.tolist() == [2 + 5, 1, 3 + 6]
        assert [step[0] for step in steps] == list(engine.generate([1, 2, 9], 5, None, ()))
        assert [step[2] for step in steps] == list(engine.generate([4, 5, 6, 10, 11], 5, None, ()))
        assert [row.finish_reason for row in batch.rows] == ["max_new_tokens", None, "max_new_tokens"]

    def test_a_failure_can_be_tried_again(
        self, workshop: Workshop, layout: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the prompt and in a step, and from a processor."""
        engine = workshop.engine("scout", layout)
        expected = list(engine.generate(PROMPTS[1], 9, Sampling(1.0, seed=2), ()))
        session, failing = engine.session(), [0]

        def fails(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
            if failing.pop():
                raise RuntimeError("not now")
            return scores

        sampling = Sampling(1.0, seed=2, logits_processor=[fails])
        generation = engine.generate(PROMPTS[1], 9, sampling, (), session=session)
        run, got = session._cache.run, []
        while len(got) < 9:
            monkeypatch.setattr(session._cache, "run", lambda call: 1 / 0)
            with pytest.raises(InputError, match="refused the call"):
                next(generation)
            monkeypatch.setattr(session._cache, "run", run)
            failing[:] = [0, 1]
            with pytest.raises(RuntimeError, match="not now"):
                next(generation)
            got.append(next(generation))
        assert got == expected and list(generation) == []

    def test_a_session_that_was_changed(self, workshop: Workshop, layout: str) -> None:
        engine = workshop.engine("scout", layout)
        session = engine.session()
        for change in (lambda: session.append([1]), lambda: session.rewind(1), session.reset):
            generation = engine.generate([5, 6], 4, None, (), session=session)
            next(generation)
            change()
            with pytest.raises(InputError, match="the session was changed while this generation ran"):
                next(generation)


def test_sessions_that_do_not_fit(engine: Engine, workshop: Workshop) -> None:
    with pytest.raises(InputError, match="1 rows of token ids for a session of 2"):
        engine.generate([1], session=engine.session(batch=2))
    with pytest.raises(InputError, match="give one of this engine"):
        engine.generate([1], session=workshop.engine("scout", "static").session())
    with pytest.raises(InputError, match="a prompt is empty"):
        engine.generate_batch([[], []], session=engine.session(batch=2))
    with pytest.raises(InputError, match="row 0: 2 \\+ 3 tokens are more"):
        session = engine.session(capacity=4)
        session.append([1, 2])
        engine.generate([1, 2, 3], session=session)


def test_recommended_sampling(workshop: Workshop, tmp_path: Path, engine: Engine) -> None:
    checkpoint = copy_checkpoint(workshop.checkpoint("scout"), tmp_path / "c")
    (checkpoint / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_p": 0.9}')
    build(checkpoint, tmp_path / "e", BuildOptions(max_context=64))
    recommending = runtimes.load(tmp_path / "e", threads=1)
    assert recommending.recommended_sampling == Sampling(0.6, 50, 0.9)
    assert engine.recommended_sampling == Sampling()
    greedy = list(engine.generate(PROMPTS[0], 4, None, ()))
    assert list(recommending.generate(PROMPTS[0], 4, None, ())) == greedy  # nothing is sampled unasked


def test_a_small_vocabulary_is_that_of_bytes() -> None:
    """What `speaking` relies on."""
    assert byte_level().get_vocab_size() >= 256
