"""Programs that use sessions from many threads, or are interrupted; each in a process of its own, for it may abort.

    python thread_programs.py shared|apart|interrupted ENGINE SECONDS

prints a JSON object of counts; whatever is wrong is an exception.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

import l4export.runtimes
from l4export.errors import InputError
from l4export.runtimes.engine import Engine
from l4export.runtimes.session import Session

THREADS = 8
TOKENS = 48
"""Of a session; three chunks of a tiny Scout."""


def in_threads(work: Callable[[int], None]) -> None:
    """Run `work` in all threads; raise the first thing that one of them raised."""
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def fed_singly(session: Session, ids: list[int]) -> np.ndarray:
    """Logits [tokens, vocab], a token a call."""
    return np.concatenate([session.append([token])[0] for token in ids])


def shared(engine: Engine, seconds: float) -> dict[str, int]:
    """All threads append token 1 to one session until it is full. Each append that is not refused must have been the
    only one at its place: together they make the logits of the sequence, each once, bit by bit."""
    expected = fed_singly(engine.session(capacity=TOKENS), [1] * TOKENS)
    session, counts, end = engine.session(capacity=TOKENS), Counter[str](), time.monotonic() + seconds
    others = [session.reset, session.fork, lambda: session.rewind(0), lambda: session.tokens(0)]
    while time.monotonic() < end:
        session.reset()
        rows: list[np.ndarray] = []

        def until_it_is_full(number: int, rows: list[np.ndarray] = rows) -> None:
            while True:
                try:
                    rows.append(session.append([1])[0, 0])
                    others[1 + number % 3]()
                except InputError as error:
                    if "capacity" in str(error):
                        return
                    assert "the session is in use" in str(error) and "in another thread" in str(error), error
                    counts["refused"] += 1
                    time.sleep(0.0005)  # so that the others get on

        in_threads(until_it_is_full)
        assert session.lengths.tolist() == [TOKENS] == [len(rows)], (session.lengths, len(rows))
        assert sorted(row.tobytes() for row in rows) == sorted(row.tobytes() for row in expected)
        counts["appended"] += len(rows)
        counts["rounds"] += 1
    return dict(counts)


def apart(engine: Engine, seconds: float) -> dict[str, int]:
    """A session for each thread: each gets, bit by bit, what it gets alone."""
    ids = [np.random.default_rng(number).integers(0, 256, TOKENS).tolist() for number in range(THREADS)]
    expected = [fed_singly(engine.session(), row) for row in ids]
    said = [list(engine.generate(row, 5, stop_token_ids=())) for row in ids]
    counts, end = Counter[str](), time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < end:
            assert np.array_equal(fed_singly(engine.session(), ids[number]), expected[number])
            assert list(engine.generate(ids[number], 5, stop_token_ids=())) == said[number]
            counts[f"thread {number}"] += 1

    in_threads(work)
    return dict(counts)


def interrupted(engine: Engine, seconds: float) -> dict[str, int]:
    """Ctrl-C at random moments: the session is as before or as after, or says that it is neither."""
    ids = np.random.default_rng(0).integers(0, 256, 200)
    expected = engine.session().append(ids)[0]
    session, counts, moments = engine.session(), Counter[str](), random.Random(0)
    end = time.monotonic() + seconds

    def ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, ctrl_c)
    while time.monotonic() < end:
        at = int(session.lengths[0])
        count = moments.choice([1, 3, 20, 40])
        if at + count > len(ids):
            session.reset()
            continue
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-6, 4e-3))
                logits = session.append(ids[at : at + count])[0]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert np.abs(logits - expected[at : at + count]).max() < 1e-4 * np.abs(expected).max()
            counts["appended"] += 1
        except KeyboardInterrupt:
            assert int(session.lengths[0]) in (at, at + count)
            counts["undone" if int(session.lengths[0]) == at else "interrupted later"] += 1
        except InputError as error:
            assert "unusable" in str(error), error
            session.reset()
            counts["unusable"] += 1
    return dict(counts)


if __name__ == "__main__":
    program = {"shared": shared, "apart": apart, "interrupted": interrupted}[sys.argv[1]]
    print(json.dumps(program(l4export.runtimes.load(sys.argv[2], threads=1), float(sys.argv[3]))))
