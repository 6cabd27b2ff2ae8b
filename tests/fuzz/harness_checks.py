"""That the harness sees what goes wrong. `test_fuzz.py` runs these in a process that has no threads yet."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fuzz_case
import fuzz_harness
from fuzz_case import Case, Outcome, Subject
from fuzz_harness import resident_bytes, run_cases
from l4export.errors import CheckFailed, InputError


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked process has in memory what the tests' own process has; 200 MB more are allowed here."""
    monkeypatch.setattr(fuzz_case, "MEMORY", resident_bytes(os.getpid()) + 200_000_000)
    monkeypatch.setattr(fuzz_harness, "_BEYOND", 200_000_000)


class Told(Subject):
    """Case `number` does the thing of that number; only `run` misbehaves."""

    name = "told"
    seconds = 5.0

    def __init__(self, valid: Path, things: list[Callable[[Path], Any]]) -> None:
        super().__init__(valid)
        self.things = iter(things)
        self.chosen = {f"told/{number}": thing for number, thing in enumerate(things)}

    def make(self, rng: random.Random, place: Path) -> Case:
        (place / "input").write_text("x")
        thing = next(thing for seed, thing in self.chosen.items() if random.Random(seed).getstate() == rng.getstate())
        return Case(lambda: thing(place), ["as it was"], output="output")


def outcomes(*things: Callable[[Path], Any], jobs: int = 1) -> list[Outcome]:
    found: list[Outcome] = []
    tally = run_cases(lambda valid: Told(valid, list(things)), range(len(things)), jobs, found.append)
    assert tally.cases == len(things)
    return sorted(found, key=lambda outcome: outcome.number)


class Panic(BaseException):
    """As the libraries that are written in Rust raise it."""


def refuse(_: Path) -> None:
    raise InputError("x: not right; make it right")


def accept(place: Path) -> None:
    (place / "output").write_text("y")


def fail(error: BaseException) -> Callable[[Path], None]:
    def thing(_: Path) -> None:
        raise error

    return thing


def test_what_ends_well() -> None:
    assert [outcome.kind for outcome in outcomes(refuse, accept, refuse)] == ["refused", "accepted", "refused"]


def test_exceptions_are_failures_but_for_refusals_of_one_line() -> None:
    errors = [ValueError("x"), Panic("x"), OSError(2, "x"), KeyboardInterrupt(), SystemExit(2)]
    messages = [InputError("two\nlines"), InputError(""), InputError("\x1b[2J"), CheckFailed("x")]
    found = outcomes(*map(fail, [*errors, *messages, AssertionError("it is wrong")]), accept)
    kinds = [outcome.kind for outcome in found]
    assert kinds == ["exception"] * 5 + ["message"] * 4 + ["nonsense", "accepted"]


def hold_memory(_: Path) -> None:
    taken = b"x" * fuzz_case.MEMORY
    del taken


def take_all_memory(_: Path) -> None:
    held = []
    while True:
        held.append(b"x" * 10_000_000)


def test_a_crash_a_hang_and_memory_are_failures_and_the_next_case_runs() -> None:
    found = outcomes(
        lambda _: os.abort(), accept, lambda _: time.sleep(60), accept, hold_memory, take_all_memory, accept,
        lambda _: os._exit(0), refuse,
    )  # fmt: skip
    kinds = [outcome.kind for outcome in found]
    assert kinds == ["crash", "accepted", "hang", "accepted", "memory", "memory", "accepted", "crash", "refused"]
    assert found[0].detail == "SIGABRT" and found[2].what == ("as it was",)


def leave_child(_: Path) -> None:
    subprocess.Popen(["sleep", "60"])


def test_leftovers_are_failures() -> None:
    def refused_with(act: Callable[[Path], Any]) -> Callable[[Path], None]:
        def thing(place: Path) -> None:
            act(place)
            raise InputError("x")

        return thing

    things = [
        lambda place: (place / "more").write_text("x"),
        lambda place: (place / "input").write_text("other"),
        lambda place: (place / "input").unlink(),
        refused_with(accept),
        lambda _: tempfile.mkstemp(),
        lambda _: os.open("/etc/hostname", os.O_RDONLY),
        lambda _: threading.Thread(target=time.sleep, args=(60,)).start(),
        leave_child,
    ]
    for thing in things:  # one at a time: each of them waits a moment for what may go
        (outcome,) = outcomes(thing)
        assert outcome.kind == "leftover", outcome


def test_what_is_written_to_the_standard_streams_is_told() -> None:
    (outcome,) = outcomes(lambda _: os.write(2, b"a warning"))
    assert outcome.output == "a warning" and not outcome.failed


def test_workers_share_the_cases() -> None:
    assert [outcome.kind for outcome in outcomes(*[accept] * 30, jobs=3)] == ["accepted"] * 30
