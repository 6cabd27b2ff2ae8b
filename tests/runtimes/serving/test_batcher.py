"""Requests side by side: each is answered as if it were alone, and none of them disturbs another."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export import runtimes
from l4export.compiler.build import build
from l4export.compiler.options import BuildOptions
from l4export.errors import InputError
from l4export.quantization.policy import standard_policy
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.engine import Engine
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.serving import Answer, Batcher, Closed, Overloaded
from workshop import LAYOUTS, ROOT, Workshop, random_ids

layouts = pytest.mark.parametrize("layout", LAYOUTS)
COUNTS = (1, 7, 40, 90, 16, 17, 33, 3, 64, 5)
PROMPTS = [random_ids(count, seed=count).tolist() for count in COUNTS]


def settings(number: int) -> dict[str, Any]:
    """Others for each request."""
    drawn = Sampling(temperature=0.9, top_p=0.9, seed=number, repetition_penalty=1.2)
    return {
        "max_new_tokens": 4 + 3 * number,
        "sampling": drawn if number % 2 else None,
        "stop_token_ids": () if number % 3 else None,
        "logprobs": number if number < 3 else None,
    }


def alone(engine: Engine, prompt: list[int], **options: Any) -> tuple[list[int], str | None, list[int]]:
    generation = engine.generate(prompt, **options)
    return list(generation), generation.finish_reason, [item.token for item in generation.row.logprobs]


def as_told(answer: Answer) -> tuple[list[int], str | None, list[int]]:
    return answer.tokens, answer.finish_reason, [item.token for item in answer.logprobs]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One that has a tokenizer."""
    path = tmp_path_factory.mktemp("speaking") / "e"
    build(ROOT / "examples/kjv/model", path, BuildOptions(max_context=128))
    return runtimes.load(path, threads=1)


@pytest.mark.parametrize(("layout", "thread"), [*((layout, True) for layout in LAYOUTS), ("chunked", False)])
def test_answers_are_those_of_one_at_a_time(workshop: Workshop, layout: str, thread: bool) -> None:
    engine = workshop.engine("scout", layout)
    expected = [alone(engine, prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]
    with Batcher(engine, rows=3, piece=20, thread=thread) as batcher:
        answers = [batcher.submit(prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]
        assert [list(answer) for answer in answers] == [tokens for tokens, *_ in expected]
        assert [as_told(answer) for answer in answers] == expected
        metrics = batcher.metrics()
    assert metrics.requests == {"finished": 10, "cancelled": 0, "failed": 0, "refused": 0}
    assert metrics.prompt_tokens == sum(COUNTS) and metrics.running == metrics.waiting == 0
    assert metrics.new_tokens == sum(len(tokens) for tokens, *_ in expected)
    assert sum(metrics.first_token.counts) == 10 and metrics.first_token.seconds > 0


def test_texts_end_at_stop_strings(speaking: Engine) -> None:
    generation = speaking.generate([0, 50, 60], 30, stop_token_ids=())
    list(generation)
    stop = generation.text[9:12]
    begun = speaking.generate([0, 50, 60], 30, stop_token_ids=(), stop_strings=stop)
    pieces = list(begun.text_pieces())
    with Batcher(speaking, rows=2) as batcher:
        first = batcher.submit([0, 50, 60], 30, stop_token_ids=(), stop_strings=["never", stop])
        second = batcher.submit([0, 50, 60], 30, stop_token_ids=())
        assert list(first.text_pieces()) == pieces and first.text == "".join(pieces) == begun.text
        assert list(second) == generation.row.tokens and second.text == generation.text
        last = list(first.chosen())[-1]
    assert (first.finish_reason, last.finish_reason, second.finish_reason) == ("stop string",) * 2 + ("max_new_tokens",)
    assert "".join(chosen.text for chosen in first.chosen()) == begun.text


def test_a_row_that_is_full_ends_and_is_used_again(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=2, capacity=40) as batcher:
        full = [batcher.submit(random_ids(count), 60, stop_token_ids=()) for count in (40, 39, 30)]
        assert [(len(answer.wait().tokens), answer.finish_reason) for answer in full] == [
            (1, "max_context"),
            (2, "max_context"),
            (11, "max_context"),
        ]
        assert (
            batcher.submit([1, 2], 8, stop_token_ids=()).wait().tokens
            == alone(engine, [1, 2], max_new_tokens=8, stop_token_ids=())[0]
        )
        with pytest.raises(InputError, match="41 tokens are more than the session's capacity of 40"):
            batcher.submit(random_ids(41).tolist())


@layouts
def test_prompts_begin_with_what_rows_hold(workshop: Workshop, layout: str) -> None:
    """A conversation goes on in its row; a prompt that begins like another copies that one's row."""
    engine = workshop.engine("scout", layout)
    system = random_ids(50, seed=1).tolist()
    first, second = [*system, 1, 2, 3], [*system, 4, 5]
    options: dict[str, Any] = {"max_new_tokens": 20, "stop_token_ids": ()}
    with Batcher(engine, rows=3) as batcher:
        begun = batcher.submit(first, **options).wait()
        other = batcher.submit(second, **options).wait()
        longer = [*first, *begun.tokens, 9, 9]
        on = batcher.submit(longer, **options).wait()
        again = batcher.submit(first, **options).wait()
    # 72 tokens are held of the first, and in layout chunked the keys of its last chunk, from 64 on
    assert other.reused_tokens == (48 if layout == "chunked" else 50)
    assert on.reused_tokens == 53 + 19, "all but the last token that was chosen"
    assert again.reused_tokens == (48 if layout == "chunked" else 52)
    for answer, prompt in ((begun, first), (other, second), (on, longer), (again, first)):
        assert answer.tokens == alone(engine, prompt, **options)[0]
    with Batcher(engine, rows=3, reuse=False) as batcher:
        assert [batcher.submit(first, **options).wait().reused_tokens for _ in range(2)] == [0, 0]


def test_prompts_that_come_together_are_computed_once(workshop: Workshop) -> None:
    engine, prompt = workshop.engine("scout", "static"), random_ids(120).tolist()
    with Batcher(engine, rows=4, piece=32, thread=False) as batcher:
        answers = [batcher.submit(prompt, 5, Sampling(temperature=1, seed=seed)) for seed in range(4)]
        for seed, answer in enumerate(answers):
            assert (
                answer.wait().tokens
                == alone(engine, prompt, max_new_tokens=5, sampling=Sampling(temperature=1, seed=seed))[0]
            )
        metrics = batcher.metrics()
    assert metrics.prompt_tokens - metrics.reused_tokens < 2 * len(prompt)


def test_a_long_prompt_keeps_nobody_waiting(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=3, piece=8, thread=False) as batcher:
        running = batcher.submit([1, 2, 3], 12, stop_token_ids=())
        batcher.step()
        long = batcher.submit(random_ids(200).tolist(), 2)
        short = batcher.submit([4, 5], 4, stop_token_ids=())
        running.wait()
        assert short.has_ended and not long.tokens
        assert len(long.wait().tokens) <= 2


def test_cancelled_requests_leave_their_rows(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    expected = alone(engine, [7], max_new_tokens=20, stop_token_ids=())[0]
    with Batcher(engine, rows=2, piece=8, thread=False) as batcher:
        answers = [batcher.submit([number], 20, stop_token_ids=()) for number in (5, 6)]
        long = batcher.submit(random_ids(200).tolist(), 20)
        waiting, last = batcher.submit([9], 20), batcher.submit([7], 20, stop_token_ids=())
        waiting.cancel()
        assert waiting.finish_reason == "cancelled" and batcher.metrics().waiting == 4
        for _ in range(3):
            batcher.step()
        answers[0].cancel()
        while not long.has_ended:
            batcher.step()
            if batcher.metrics().waiting == 1:  # it has the row of the first
                long.cancel()
        assert last.wait().tokens == expected
        assert (answers[0].finish_reason, long.finish_reason) == ("cancelled", "cancelled")
        assert 0 < len(list(answers[0])) < 20 and list(long) == [] and len(answers[1].wait().tokens) == 20
        last.cancel()
        assert last.finish_reason == "max_new_tokens", "nothing happens to one that has ended"
        assert batcher.metrics().requests == {"finished": 2, "cancelled": 3, "failed": 0, "refused": 0}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": []}, "no token ids"),
    ({"token_ids": "abc"}, "token ids must be a sequence"),
    ({"token_ids": [1, 256]}, "token id 256 is outside"),
    ({"token_ids": [[1], [2]]}, "2 rows of token ids"),
    ({"token_ids": [1] * 300}, "300 tokens are more"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"sampling": 0.5}, "sampling is 0.5"),
    ({"stop_token_ids": [-1]}, "a token of stop_token_ids is -1"),
    ({"stop_strings": [""]}, "stop_strings"),
    ({"logprobs": -1}, "logprobs is -1"),
    ({"images": "cat.png"}, "images is 'cat.png'"),
]


def test_everything_is_checked_when_it_is_asked(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=1, thread=False) as batcher:
        for options, words in BAD:
            with pytest.raises(InputError, match=words):
                batcher.submit(**{"token_ids": [1], **options})
        assert batcher.metrics().waiting == 0
        assert batcher.is_open
    assert not batcher.is_open
    with pytest.raises(Closed, match="the batcher is closed"):
        batcher.submit([1])
    for wrong, words in (({"rows": 0}, "rows is 0"), ({"piece": 0}, "piece is 0"), ({"waiting": 0}, "waiting is 0")):
        with pytest.raises(InputError, match=words):
            Batcher(engine, **wrong)
    with pytest.raises(InputError, match="engine is 'engine'"):
        Batcher("engine")  # type: ignore[arg-type]


def test_more_than_may_wait_are_refused(workshop: Workshop) -> None:
    with Batcher(workshop.engine("scout", "static"), rows=2, waiting=3, thread=False) as batcher:
        answers = [batcher.submit([number], 3) for number in range(5)]
        with pytest.raises(Overloaded, match="5 requests wait already; ask again later"):
            batcher.submit([1])
        assert batcher.metrics().requests["refused"] == 1
        for answer in answers:
            answer.wait()
        batcher.submit([1], 1).wait()


class Failing:
    """Decoder calls of which some fail."""

    def __init__(self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = batcher._session._cache
        self.run, self.fails = cache.run, False
        monkeypatch.setattr(cache, "run", self)

    def __call__(self, call: Call) -> np.ndarray:
        if self.fails or 255 in call.ids:
            raise RuntimeError("lost")
        return self.run(call)


def test_a_failing_prompt_takes_nobody_down(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=3, thread=False) as batcher:
        Failing(batcher, monkeypatch)
        good = batcher.submit([1, 2], 10, Sampling(temperature=1, seed=1), stop_token_ids=())
        bad, after = batcher.submit([3, 255, 4]), batcher.submit([5, 6], 3, stop_token_ids=())
        with pytest.raises(InputError, match="the engine refused the call: RuntimeError: lost"):
            bad.wait()
        with pytest.raises(InputError, match="lost"):
            list(bad)
        assert bad.finish_reason == "failed" and bad.error is not None
        expected = alone(
            engine, [1, 2], max_new_tokens=10, sampling=Sampling(temperature=1, seed=1), stop_token_ids=()
        )[0]
        assert expected.count(255) == 0 and good.wait().tokens == expected and len(after.wait().tokens) == 3
        assert batcher.metrics().requests == {"finished": 2, "cancelled": 0, "failed": 1, "refused": 0}


def test_a_failing_step_fails_those_in_it_and_no_others(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with Batcher(workshop.engine("scout", "static"), rows=3, piece=8, thread=False) as batcher:
        failing = Failing(batcher, monkeypatch)
        running = [batcher.submit([number, number], 10, stop_token_ids=()) for number in (1, 2)]
        batcher.step()
        batcher.step()
        long, failing.fails = batcher.submit(random_ids(100, 200).tolist(), 3, stop_token_ids=()), False
        batcher.step()
        run = failing.run
        monkeypatch.setattr(failing, "run", lambda call: run(call) if call.row is not None else 1 / 0)
        batcher.step()
        monkeypatch.setattr(failing, "run", run)
        for answer in running:
            with pytest.raises(InputError, match="the engine refused the call: ZeroDivisionError"):
                answer.wait()
        assert len(long.wait().tokens) == 3


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_session_that_is_lost(workshop: Workshop, monkeypatch: pytest.MonkeyPatch, is_lost: bool) -> None:
    """It is emptied, and the batcher goes on; where that fails too, it says so from then on."""
    with Batcher(workshop.engine("scout", "static"), rows=3, thread=True) as batcher:
        failing, cache = Failing(batcher, monkeypatch), batcher._session._cache

        def raises(*_: object) -> None:
            raise RuntimeError("gone")

        monkeypatch.setattr(cache, "restore", raises)
        if is_lost:
            monkeypatch.setattr(cache, "reset", raises)
        failing.fails = True
        with pytest.raises(InputError, match="could not be undone"):
            batcher.submit([1, 2, 3], 5).wait(20)
        failing.fails = False
        if is_lost:
            with pytest.raises(Closed, match=r"the batcher cannot go on \(.*gone\)"):
                batcher.submit([1])
            assert not batcher.is_open
        else:
            assert len(batcher.submit([1, 2, 3], 5, stop_token_ids=()).wait(20).tokens) == 5


def test_a_failing_processor_is_its_requests_own_affair(workshop: Workshop) -> None:
    def processor(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(ids) == 5:
            raise ValueError("no more")
        return scores

    with Batcher(workshop.engine("scout", "static"), rows=2) as batcher:
        bad = batcher.submit([1, 2, 3], 9, Sampling(logits_processor=[processor]), stop_token_ids=())
        good = batcher.submit([1, 2, 3], 9, stop_token_ids=())
        with pytest.raises(InputError, match="no more"):
            list(bad)
        assert bad.tokens == good.wait().tokens[:2]


def test_an_interruption_loses_nothing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the caller drives, Ctrl-C may come at any decoder call."""
    engine = workshop.engine("scout", "static")
    with Batcher(engine, rows=2, piece=8, thread=False) as batcher:
        failing, calls = Failing(batcher, monkeypatch), 0
        run = failing.run

        def interrupted(call: Call) -> np.ndarray:
            nonlocal calls
            calls += 1
            logits = run(call)
            if calls % 3 == 0:
                raise KeyboardInterrupt
            return logits

        monkeypatch.setattr(failing, "run", interrupted)
        prompts = [random_ids(30).tolist(), [1, 2]]
        answers = [batcher.submit(prompt, 9, stop_token_ids=()) for prompt in prompts]
        hits = 0
        while not all(answer.has_ended for answer in answers):
            try:
                batcher.step()
            except KeyboardInterrupt:
                hits += 1
        assert hits > 3
        monkeypatch.undo()
        for answer, prompt in zip(answers, prompts, strict=True):
            assert answer.tokens == alone(engine, prompt, max_new_tokens=9, stop_token_ids=())[0]


@pytest.mark.parametrize("thread", [True, False])
def test_tasks_read_side_by_side(workshop: Workshop, thread: bool) -> None:
    """More of them than asyncio has threads; one is cancelled, one reads what has ended."""
    engine = workshop.engine("scout", "static")
    expected = [alone(engine, prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]

    async def main() -> list[Any]:
        with Batcher(engine, rows=3, thread=thread) as batcher:
            answers = [batcher.submit(prompt, **settings(number)) for number, prompt in enumerate(PROMPTS)]

            async def read(answer: Answer) -> tuple[list[int], str]:
                return [token async for token in answer], "".join([piece async for piece in answer.text_pieces()])

            lost = asyncio.create_task(read(batcher.submit([1], 200, stop_token_ids=())))
            await asyncio.sleep(0.01)
            lost.cancel()
            gone = batcher.submit([1], 200, stop_token_ids=())
            gone.cancel()
            read_all = await asyncio.gather(*map(read, answers))
            assert (await gone).finish_reason == "cancelled"
            assert [(await answer).text for answer in answers] == [text for _, text in read_all]
            return [tokens for tokens, _ in read_all]

    assert asyncio.run(main()) == [tokens for tokens, *_ in expected]


def test_closing_finishes_what_is_there(workshop: Workshop) -> None:
    engine = workshop.engine("scout", "static")
    for thread in (True, False):
        batcher = Batcher(engine, rows=2, thread=thread)
        answers = [batcher.submit([number], 20, stop_token_ids=()) for number in range(5)]
        closers = [threading.Thread(target=batcher.close) for _ in range(4)]
        for closer in closers:
            closer.start()
        batcher.close()
        assert [len(answer.tokens) for answer in answers] == [20] * 5
        for closer in closers:
            closer.join(20)
        batcher.close()


def test_closing_in_time_cancels_the_rest(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = workshop.engine("scout", "static")
    for thread in (True, False):
        batcher = Batcher(engine, rows=1, thread=thread)
        failing = Failing(batcher, monkeypatch)
        run = failing.run
        monkeypatch.setattr(failing, "run", lambda call, run=run: time.sleep(0.01) or run(call))
        answers = [batcher.submit([1], 200, stop_token_ids=()), batcher.submit([2], 200, stop_token_ids=())]
        began = time.monotonic()
        batcher.close(timeout=0.2)
        assert time.monotonic() - began < 10
        assert [answer.finish_reason for answer in answers] == ["cancelled"] * 2
        assert 0 < len(answers[0].tokens) < 200 and not answers[1].tokens


def test_threads_submit_and_read_at_once(workshop: Workshop) -> None:
    engine, failures = workshop.engine("scout", "static"), []
    expected = {number: alone(engine, [number], max_new_tokens=6)[0] for number in range(8)}
    with Batcher(engine, rows=3) as batcher:

        def client(number: int) -> None:
            for _ in range(5):
                if list(batcher.submit([number], 6)) != expected[number]:
                    failures.append(number)

        threads = [threading.Thread(target=client, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures and batcher.metrics().requests["finished"] == 40


@pytest.mark.slow
def test_int8_activations_let_rows_depart_at_near_ties_only(
    tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an engine of `--quant int4`, rows influence each other's rounding. Every departure is looked at."""
    build(ROOT / "examples/kjv/model", tmp_path / "e", BuildOptions(max_context=128, policy=standard_policy("int4")))
    engine = runtimes.load(tmp_path / "e", threads=1)
    assert engine.text is not None
    ids = engine.text.encode((ROOT / "examples/kjv/held_out.txt").read_text(encoding="utf-8")[:40_000])
    prompts, departed = [ids[300 * n : 300 * n + 11 + n] for n in range(12)], 0
    with Batcher(engine, rows=6, piece=16) as batcher:
        answers = [batcher.submit(prompt, 20) for prompt in prompts]
        for prompt, answer in zip(prompts, answers, strict=True):
            expected = list(engine.generate(prompt, 20))
            tokens = answer.wait().tokens
            at = next((n for n, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), None)
            if at is not None:
                departed += 1
                logits = engine.session().append([*prompt, *expected[:at]], last_only=True)[0, 0]
                assert logits[expected[at]] - logits[tokens[at]] < 5e-2 * np.abs(logits).max(), "no near tie"
    record_property("departed", departed)
    with capsys.disabled():
        print(f"\n{departed} of {len(prompts)} answers of 20 tokens depart at a near tie (int4, 6 rows)")
