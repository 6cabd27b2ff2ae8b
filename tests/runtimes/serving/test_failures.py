"""Calls, sessions and processors that fail: they end the requests that they were about, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from batching import Failing, alone

from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.sampling.settings import Sampling
from l4export.runtimes.serving import Batcher, Closed
from workshop import Workshop, random_ids


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
