"""Threads end with their block, also when it is left while work is being handed out."""

from __future__ import annotations

import threading
import time

import pytest

from l4export.storage.worker_threads import worker_threads


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_work_is_given_up_wherever_the_block_is_left(error: type[BaseException]) -> None:
    given_up, begun = threading.Event(), []
    started = time.monotonic()

    def work(number: int) -> None:
        begun.append(number)
        given_up.wait(60)

    with pytest.raises(error), worker_threads(2, given_up) as workers:
        for number in range(100):
            workers.submit(work, number)
        while len(begun) < 2:
            time.sleep(0.001)
        raise error
    assert given_up.is_set() and len(begun) == 2 and time.monotonic() - started < 30


def test_work_that_is_done_is_not_given_up() -> None:
    given_up = threading.Event()
    with worker_threads(None, given_up) as workers:
        done = [workers.submit(lambda number: number * 2, number) for number in range(10)]
    assert [each.result() for each in done] == list(range(0, 20, 2)) and not given_up.is_set()
