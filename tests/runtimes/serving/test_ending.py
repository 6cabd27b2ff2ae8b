"""Requests that are cancelled, and batchers that are closed."""

from __future__ import annotations

import threading
import time

import pytest
from batching import Failing, alone

from l4export.runtimes.serving import Batcher
from workshop import Workshop, random_ids


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
