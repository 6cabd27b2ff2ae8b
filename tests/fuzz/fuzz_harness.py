"""Runs cases in worker processes, which may die, hang or take too much memory, and counts how they ended."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import fuzz_case
from fuzz_case import MESSAGE, Outcome, Subject, examine

__all__ = ["Tally", "resident_bytes", "run_cases"]

_BEYOND = 10**9  # bytes more than `MEMORY`, at which a process is ended so that it does not take all there are
_CASES_OF_A_WORKER = 500
_STARTING = 900.0  # seconds for valid inputs and warming up, which may compile kernels
_POLL = 0.05
_UNUSABLE = ("crash", "hang", "memory", "leftover")  # what a worker does not survive, or takes into its next case

_processes = multiprocessing.get_context("fork")


@dataclass
class Tally:
    """What came of all cases of a subject; seconds are of wall-clock time, bytes the largest of any case."""

    name: str
    cases: int = 0
    refused: int = 0
    accepted: int = 0
    seconds: float = 0.0
    peak: int = 0
    slowest: float = 0.0
    failures: list[Outcome] = field(default_factory=list)
    noisy: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Count a case that took so long."""
        self.cases += 1
        self.refused += outcome.kind == "refused"
        self.accepted += outcome.kind == "accepted"
        self.peak, self.slowest = max(self.peak, outcome.peak), max(self.slowest, seconds)
        if outcome.failed:
            self.failures.append(outcome)
        elif outcome.output:
            self.noisy.append(outcome)


def run_cases(
    make_subject: Callable[[Path], Subject],
    numbers: Iterable[int],
    jobs: int = 1,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Tally:
    """Run the cases of these numbers in `jobs` worker processes; `on_outcome` is told each as it ends."""
    shared = Path("/dev/shm")  # builds force their files to disk, which costs nothing there
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None) as root:
        (valid := Path(root) / "valid").mkdir()
        subject = make_subject(valid)
        _prepare(subject)
        tally, started = Tally(subject.name), time.monotonic()
        waiting = iter(numbers)
        workers = [_Worker(subject, Path(root) / f"worker-{index}") for index in range(jobs)]
        try:
            while any([worker.feed(waiting) for worker in workers]):
                wait([worker.pipe for worker in workers if worker.busy], timeout=_POLL)
                for worker in workers:
                    if worker.busy and (outcome := worker.outcome()):
                        tally.add(outcome, worker.seconds)
                        on_outcome(outcome)
        finally:
            for worker in workers:
                worker.end()
        tally.seconds = time.monotonic() - started
        return tally


def _prepare(subject: Subject) -> None:
    process = _processes.Process(target=subject.prepare)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{subject.name}: the valid inputs could not be made")


class _Worker:
    """A process that runs cases one after the other, as the process that started it sees it."""

    def __init__(self, subject: Subject, root: Path) -> None:
        self._subject, self._root = subject, root
        self._process: Any = None
        self._left = 0
        self._number: int | None = None
        self._what: tuple[str, ...] = ()
        self._since = 0.0
        self.seconds = 0.0
        self.pipe: Connection

    @property
    def busy(self) -> bool:
        """Whether a case is running."""
        return self._number is not None

    def feed(self, numbers: Iterator[int]) -> bool:
        """Start the next case, if none is running and one is left; whether one is running then."""
        if not self.busy and (number := next(numbers, None)) is not None:
            if self._left == 0:
                self.end()
                self._start()
            self.pipe.send(number)
            self._left -= 1
            self._number, self._what, self._since = number, (), time.monotonic()
        return self.busy

    def outcome(self) -> Outcome | None:
        """How the case that is running ended; None while it may go on."""
        assert self._number is not None
        self.seconds = time.monotonic() - self._since
        found = self._told() if self.pipe.poll() else self._overdue()
        if found:
            if found.kind in _UNUSABLE:
                self.end()
            self._number = None
        return found

    def _told(self) -> Outcome | None:
        try:
            told = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            return self._failure("crash", signal.Signals(-code).name if code < 0 else f"exit code {code}")
        if isinstance(told, Outcome):
            return told
        self._what = told  # the input is made, and the operation begins
        return None

    def _overdue(self) -> Outcome | None:
        if self.seconds > self._subject.seconds:
            return self._failure("hang", f"more than {self._subject.seconds:g} seconds")
        if (resident := resident_bytes(self._process.pid)) > fuzz_case.MEMORY + _BEYOND:
            return self._failure("memory", f"more than {resident / 1e9:.2f} GB", resident)
        return None

    def _failure(self, kind: str, detail: str, peak: int = 0) -> Outcome:
        assert self._number is not None
        return Outcome(self._number, kind, detail, what=self._what, peak=peak)

    def _start(self) -> None:
        self.pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_serve, args=(self._subject, self._root, theirs))
        self._process.start()
        theirs.close()
        told = self.pipe.recv() if self.pipe.poll(_STARTING) else "it takes too long"
        if told != "ready":
            raise RuntimeError(f"{self._subject.name}: a worker could not start: {told}")
        self._left = _CASES_OF_A_WORKER

    def end(self) -> None:
        """End the process and what it has started, and remove its files."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # the group is this worker's own
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.join()
            self._process.close()
            self.pipe.close()
        self._process, self._left = None, 0
        shutil.rmtree(self._root, ignore_errors=True)


def resident_bytes(pid: int) -> int:
    """Bytes that a process and its descendants have in memory."""
    total = 0
    with contextlib.suppress(OSError):
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            total += sum(resident_bytes(int(child)) for child in children.read_text().split())
    return total


def _serve(subject: Subject, root: Path, pipe: Connection) -> None:
    """A worker's life: numbers come in, outcomes go out."""
    os.setsid()
    faulthandler.disable()  # what pytest asks for
    place, temporary, output = root / "case", root / "temporary", root / "output"
    for directory in (place, temporary):
        directory.mkdir(parents=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    descriptor = os.open(output, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        subject.begin()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        pipe.send(output.read_text())
        raise
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    while True:
        number = pipe.recv()
        os.truncate(output, 0)
        found = examine(subject, number, place, temporary, pipe.send)
        text = output.read_text(errors="replace")[:MESSAGE]
        shutil.rmtree(place)
        place.mkdir()
        pipe.send(Outcome(**{**found.__dict__, "output": text}))
