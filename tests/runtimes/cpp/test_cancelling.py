"""Cancelling a generation of the native library, from its callback and from other threads."""

from __future__ import annotations

import threading
import time

import pytest

from native_generation import L4Token, NativeGeneration, Row
from native_library import NativeError
from native_sampling import native_sampling
from native_session import NativeEngine
from workshop import Workshop, random_ids

PROMPTS = [random_ids(n, seed=n).tolist() for n in (12, 70, 5)]
EACH = [
    native_sampling(),
    native_sampling(temperature=1.0, seed=5, repetition_penalty=1.3),
    native_sampling(temperature=0.8, top_k=20, min_p=0.02, seed=5),
]
CANCELLED = 130


@pytest.fixture(scope="module")
def engine(workshop: Workshop) -> NativeEngine:
    return NativeEngine(workshop.engine_path("scout", "chunked"))


def _generate_while_a_thread_cancels(engine: NativeEngine) -> tuple[list[Row], int]:
    """What is generated, and how many steps were cancelled and asked for again."""
    session = engine.session(3)
    generation = NativeGeneration(session, PROMPTS, 30, EACH, []).start()
    done, cancelled = threading.Event(), 0

    def cancels() -> None:
        while not done.wait(0.0005):
            session.cancel()

    thread = threading.Thread(target=cancels)
    thread.start()
    try:
        while True:
            try:
                if not generation.step():
                    return generation.rows, cancelled
            except NativeError as error:
                assert error.status == CANCELLED
                cancelled += 1
    finally:
        done.set()
        thread.join()


def test_between_two_tokens(engine: NativeEngine) -> None:
    """Within one call: the callback's thread may cancel, too. The session goes on with what was given."""
    due = NativeGeneration(engine.session(), PROMPTS[:1], 12, EACH[1:2], []).run().rows[0].tokens
    session = engine.session()
    called = NativeGeneration(session, PROMPTS[:1], 12, EACH[1:2], [])

    def cancels(token: L4Token) -> int:
        if len(called.rows[0].tokens) == 5:
            session.cancel()
        return 0

    with pytest.raises(NativeError) as error:
        called.run(cancels)
    assert error.value.status == CANCELLED and called.rows[0].tokens == due[:5]
    assert session.token_ids() == PROMPTS[0] + due[:4]
    session.cancel()  # nothing runs: nothing happens
    session.append([due[4:5]])
    assert session.token_ids() == PROMPTS[0] + due[:5]


def test_from_another_thread_and_on(engine: NativeEngine) -> None:
    """A thread cancels again and again; each time the step is asked for again, and nothing is lost."""
    due = NativeGeneration(engine.session(3), PROMPTS, 30, EACH, []).run().rows
    for _ in range(100):  # a step takes less than a millisecond, and a busy machine may run it between two cancels
        rows, cancelled = _generate_while_a_thread_cancels(engine)
        assert rows == due
        if cancelled:
            return
    raise AssertionError("no call was cancelled")


def test_during_a_prompt(workshop: Workshop) -> None:
    session = NativeEngine(workshop.engine_path("scout", "static", 2048)).session()
    prompt = random_ids(2000, seed=5).tolist()
    generation = NativeGeneration(session, [prompt], 2, stop_token_ids=[]).start()
    statuses: list[int] = []

    def runs() -> None:
        try:
            generation.step()
        except NativeError as error:
            statuses.append(error.status)

    thread = threading.Thread(target=runs)
    thread.start()
    while thread.is_alive():
        session.cancel()
        time.sleep(0.0002)
    assert statuses == [CANCELLED] and session.lengths == [0]
    assert generation.step() != [] and session.lengths == [2000]
