"""Sessions and threads: one caller at a time, nothing half done, and many sessions side by side."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4export.errors import InputError
from l4export.runtimes.cache.kv_cache import Call
from l4export.runtimes.session import Session
from workshop import LAYOUTS, ROOT, Workshop, assert_close, random_ids

layouts = pytest.mark.parametrize("layout", LAYOUTS)

CALLS: dict[str, Callable[[Session, Path], object]] = {
    "append": lambda session, _: session.append([1]),
    "step": lambda session, _: session.step([1]),
    "rewind": lambda session, _: session.rewind(0),
    "fork": lambda session, _: session.fork(),
    "copy_row": lambda session, _: session.copy_row(0, session, 0),
    "save": lambda session, path: session.save(path),
    "reset": lambda session, _: session.reset(),
    "close": lambda session, _: session.close(),
    "tokens": lambda session, _: session.tokens(0),
}
UNGUARDED = {"checked", "restored"}
"""`checked` only reads the state, `restored` makes a session."""


class Pause:
    """Holds a session's decoder calls until it is told otherwise."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go_on, self.calls = threading.Event(), threading.Event(), 0
        run = session._cache.run

        def held(call: Call) -> np.ndarray:
            self.calls += 1
            self.entered.set()
            assert self.go_on.wait(20)
            return run(call)

        monkeypatch.setattr(session._cache, "run", held)


@contextmanager
def appending(session: Session, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[np.ndarray]]:
    """Another thread is within `append`; its logits are there in the end."""
    pause, logits = Pause(session, monkeypatch), []
    thread = threading.Thread(target=lambda: logits.append(session.append(ids)))
    thread.start()
    assert pause.entered.wait(20)
    try:
        yield logits
    finally:
        pause.go_on.set()
        thread.join()


def test_every_method_is_looked_at() -> None:
    methods = {name for name, _ in inspect.getmembers(Session, inspect.isroutine) if not name.startswith("_")}
    assert methods == CALLS.keys() | UNGUARDED


@layouts
def test_a_session_in_use_refuses_every_other_call(
    workshop: Workshop, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(40)
    expected = workshop.reference("scout").logits(ids[None])[0]
    session = workshop.engine("scout", layout).session()
    session.append(ids[:20])
    with appending(session, ids[20:38], monkeypatch) as logits:
        for name, call in CALLS.items():
            with pytest.raises(InputError, match="the session is in use: append runs in another thread; use") as caught:
                call(session, tmp_path / name)
            assert "\n" not in str(caught.value) and not (tmp_path / name).exists()
        assert session.lengths.tolist() == [20] == session.positions.tolist()  # an append is told when it is done
        assert session.kv_bytes > 0 and session.state.lengths.tolist() == [20]
    assert_close(logits[0][0], expected[20:38])
    assert session.lengths.tolist() == [38]
    assert_close(session.append(ids[38:])[0], expected[38:])


def test_a_call_within_a_call_is_refused_too(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from the handler of a signal, which runs in the middle of whatever its thread does."""
    session = workshop.engine("scout", "static").session()
    run = session._cache.run

    def calls_again(call: Call) -> np.ndarray:
        with pytest.raises(InputError, match="append runs in this thread"):
            session.append([1])
        return run(call)

    monkeypatch.setattr(session._cache, "run", calls_again)
    session.append([1, 2])
    assert session.lengths.tolist() == [2]


def test_a_cancelled_call_loses_no_token(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling cannot end a thread: its call goes on, a retry is refused meanwhile, and then the tokens are there."""
    ids = random_ids(30)
    expected = workshop.reference("scout").logits(ids[None])[0]
    session = workshop.engine("scout", "static").session()
    session.append(ids[:10])
    pause = Pause(session, monkeypatch)

    async def cancelled_and_retried() -> None:
        task = asyncio.create_task(asyncio.to_thread(session.append, ids[10:20]))
        while not pause.entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(3):
            with pytest.raises(InputError, match="in use"):
                await asyncio.to_thread(session.append, ids[10:20])
        pause.go_on.set()

    asyncio.run(cancelled_and_retried())  # which joins the threads
    assert pause.calls == 1 and session.lengths.tolist() == [20]
    assert_close(session.append(ids[20:])[0], expected[20:])


def test_a_generation_has_one_caller(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, entered, go_on = workshop.engine("scout", "static"), threading.Event(), threading.Event()
    expected = list(engine.generate([1, 2, 3], 4, stop_token_ids=()))
    append = Session.append

    def held(session: Session, *arguments: Any, **named: Any) -> np.ndarray:
        entered.set()
        assert go_on.wait(20)
        return append(session, *arguments, **named)

    tokens, got = engine.generate([1, 2, 3], 4, stop_token_ids=()), []
    monkeypatch.setattr(Session, "append", held)
    thread = threading.Thread(target=lambda: got.append(next(tokens)))
    thread.start()
    assert entered.wait(20)
    with pytest.raises(InputError, match="the generation is in use: next runs in another thread"):
        next(tokens)
    go_on.set()
    thread.join()
    assert got + list(tokens) == expected


@layouts
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError, SystemExit], ids=lambda e: e.__name__)
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_whatever_is_raised_in_an_append_leaves_the_session_as_it_was(
    workshop: Workshop, layout: str, error: type[BaseException], is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any of its calls, before or after it has written keys and values; two rows, with boundaries of chunks."""
    ids = random_ids((2, 70), seed=11)
    expected = workshop.reference("scout").logits(ids)
    session = workshop.engine("scout", layout).session(batch=2)
    session._piece = 8
    session.append([ids[0, :21], ids[1, :32]])
    run = session._cache.run
    for at in range(8):
        calls = 0

        def fails(call: Call, at: int = at) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls == at + 1 and not is_done:
                raise error
            logits = run(call)
            if calls == at + 1:
                raise error
            return logits

        monkeypatch.setattr(session._cache, "run", fails)
        raised = InputError if issubclass(error, Exception) else error
        with pytest.raises(raised):
            session.append(random_ids((2, 38), seed=at))
        monkeypatch.setattr(session._cache, "run", run)
        assert session.lengths.tolist() == [21, 32]
    session.rewind([1, 0])
    logits = session.append([ids[0, 20:60], ids[1, 32:70]])
    assert_close(logits[0], expected[0, 20:60])
    assert_close(logits[1, :38], expected[1, 32:70])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda call: call.__name__)
def test_a_session_is_copied_by_fork_alone(workshop: Workshop, duplicate: Callable[[Session], object]) -> None:
    """Two objects on one cache would write over each other's tokens."""
    with pytest.raises(InputError, match="use fork"):
        duplicate(workshop.engine("scout", "static").session())


def test_a_session_that_cannot_be_restored_says_so(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = random_ids(40)
    expected = workshop.reference("scout").logits(ids[None])[0]
    session = workshop.engine("scout", "chunked").session()
    session.append(ids[:21])
    for error, raised in ((RuntimeError("device lost"), InputError), (KeyboardInterrupt(), KeyboardInterrupt)):
        with monkeypatch.context() as patch:

            def fails(*_: Any, error: BaseException = error) -> None:
                raise error

            patch.setattr(session._cache, "run", fails)
            patch.setattr(session._cache, "restore", fails)
            with pytest.raises(raised) as caught:
                session.append(ids[21:40])
        assert "\n" not in str(caught.value)
        for name, call in CALLS.items():
            if name not in {"reset", "close"}:
                with pytest.raises(InputError, match="unusable"):
                    call(session, tmp_path / name)
        session.reset()
        assert_close(session.append(ids[:21])[0], expected[:21])


def run_program(program: str, engine: Path, seconds: float) -> dict[str, int]:
    """A process of its own, so that an abort is seen."""
    command = [sys.executable, str(ROOT / "tests/support/thread_programs.py"), program, str(engine), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20 * seconds + 60)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


def test_eight_threads_on_one_session(workshop: Workshop) -> None:
    counts = run_program("shared", workshop.engine_path("scout", "chunked"), 2)
    assert counts["refused"] > 0 and counts["appended"] > 0


def test_eight_threads_with_a_session_each(workshop: Workshop) -> None:
    assert len(run_program("apart", workshop.engine_path("scout", "static"), 1)) == 8


def test_interruptions_at_random_moments(workshop: Workshop) -> None:
    counts = run_program("interrupted", workshop.engine_path("scout", "chunked"), 2)
    assert counts["undone"] > 0 and counts["appended"] > 0


@pytest.mark.slow
@layouts
@pytest.mark.parametrize("program", ["shared", "apart", "interrupted"])
def test_threads_for_a_minute(workshop: Workshop, layout: str, program: str) -> None:
    assert run_program(program, workshop.engine_path("scout", layout), 60)
