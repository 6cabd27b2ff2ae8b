"""Runs hostile inputs, each in a worker process that may die, and judges how each operation ended.

A subject makes the inputs of one class. Case `number` of a subject is made with a random generator that is seeded with
the subject's name and the number, so each case can be made again alone. An operation ends well, or in an `L4Error` of
one line with exit code 2, 3 or 4. Everything else is a failure:

* another exception, whatever its base class, or the death of the process
* more than `Subject.seconds`, or more than 1 GB of resident memory in the process or in a child
* an input that was changed; a file beside the inputs and the output, or in the directory for temporary files; a
  descriptor, a thread or a child process that is still there afterwards
* an accepted input that makes no sense, which the subject itself finds out (`AssertionError`)
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, ClassVar

from l4export.errors import L4Error

__all__ = ["MEMORY", "Case", "Outcome", "Subject", "Tally", "resident_bytes", "run_cases"]

MEMORY = 10**9
"""Bytes of resident memory that an operation may take, its libraries included."""

_BEYOND = 10**9  # bytes more than `MEMORY`, at which a process is ended so that it does not take all there are
_CASES_OF_A_WORKER = 500
_STARTING = 900.0  # seconds for valid inputs and warming up, which may compile kernels
_POLL = 0.05
_MESSAGE = 2000  # characters
_UNUSABLE = ("crash", "hang", "memory", "leftover")  # what a worker does not survive, or takes into its next case

_processes = multiprocessing.get_context("fork")


@dataclass
class Case:
    """One hostile input in a directory, and what is done with it.

    Attributes:
        run: The operation; raises `L4Error` when it refuses the input, `AssertionError` when what it made of an
            accepted one is wrong.
        what: How the input differs from a valid one, for a person.
        output: Name in the directory that may be there after `run` has accepted the input, and not otherwise.
        spent: Names in the directory that `run` may change or remove, but not make.
    """

    run: Callable[[], None]
    what: list[str]
    output: str | None = None
    spent: tuple[str, ...] = ()


class Subject(ABC):
    """One class of inputs.

    Attributes:
        name: What the class is called on the command line.
        seconds: Wall-clock time that a case may take.
        valid: The directory of the valid inputs that cases start from.
    """

    name: ClassVar[str]
    seconds: ClassVar[float] = 30.0

    def __init__(self, valid: Path) -> None:
        self.valid = valid

    def prepare(self) -> None:
        """Write the valid inputs; called once, in a process of its own."""
        return

    def begin(self) -> None:
        """Do in a worker, before its first case, what would otherwise count as memory or time of that case."""
        return

    @abstractmethod
    def make(self, rng: random.Random, place: Path) -> Case:
        """Write one hostile input into the empty directory `place`."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    `kind` is "accepted", "refused", or the kind of failure; `detail` the message; `trace` where an exception came from.
    `peak` is in bytes, `output` what was written to the standard streams.
    """

    number: int
    kind: str
    detail: str = ""
    trace: str = ""
    what: tuple[str, ...] = ()
    peak: int = 0
    output: str = ""

    @property
    def failed(self) -> bool:
        """Whether it ended in neither of the two ways that are right."""
        return self.kind not in ("accepted", "refused")

    @property
    def signature(self) -> str:
        """The same for failures that are likely to have the same cause: the kind, the place, the message's words."""
        at = re.findall(r'File ".*?/((?:l4export|runtimes|passes|tests/fuzz)/[^"]+)", line (\d+)', self.trace)
        words = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d+", "_", self.detail)[:120]
        return " ".join([self.kind, *(f"[{name}:{line}]" for name, line in at[-1:]), words])


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
        if (resident := resident_bytes(self._process.pid)) > MEMORY + _BEYOND:
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
        found = _examine(subject, number, place, temporary, pipe)
        text = output.read_text(errors="replace")[:_MESSAGE]
        shutil.rmtree(place)
        place.mkdir()
        pipe.send(Outcome(**{**found.__dict__, "output": text}))


def _examine(subject: Subject, number: int, place: Path, temporary: Path, pipe: Connection) -> Outcome:
    """Make one case, run it and judge it."""
    case = subject.make(random.Random(f"{subject.name}/{number}"), place)
    pipe.send(tuple(case.what))
    before, held = _entries(place), _Held(temporary)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of this process begins anew
    kind, detail, trace = "accepted", "", ""
    try:
        case.run()
    except L4Error as error:
        kind, detail, trace = "refused", str(error), _trace(error)
        if fault := _fault(error):
            kind, detail = "message", f"{fault}: {detail!r}"
    except AssertionError as error:
        kind, detail, trace = "nonsense", str(error), _trace(error)
    except BaseException as error:
        kind, detail, trace = "exception", f"{type(error).__name__}: {error}", _trace(error)
    peak = max(_own_peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    if kind in ("accepted", "refused"):
        left = _left(case, kind == "accepted", before, _entries(place)) or held.left()
        if left:
            kind, detail = "leftover", f"{left} ({kind})"
        if peak > MEMORY:
            kind, detail = "memory", f"{peak / 1e9:.2f} GB ({kind})"
    return Outcome(number, kind, detail[:_MESSAGE], trace, tuple(case.what), peak)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _fault(error: L4Error) -> str | None:
    """What is wrong with a refusal."""
    message = str(error)
    if error.exit_code not in (2, 3, 4):
        return f"exit code {error.exit_code}"
    if not message or len(message.splitlines()) != 1 or len(message) > _MESSAGE:
        return "not one line"
    return None if message.isprintable() else "not printable"


def _own_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _entries(place: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Each name in a directory, with what tells whether anything at or below it was changed."""
    found = {}
    for top in os.scandir(place):
        paths = [Path(top.path)]
        for directory, directories, files in os.walk(top.path):
            paths += [Path(directory, name) for name in (*directories, *files)]
        states = {str(path): os.lstat(path) for path in paths}
        found[top.name] = {path: (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns) for path, s in states.items()}
    return found


def _left(case: Case, accepted: bool, before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What a case has left or changed that it should not have."""
    allowed = {case.output} if accepted else set()
    if made := sorted(after.keys() - before.keys() - allowed):
        return f"{made[0]!r} is left"
    for name, states in before.items():
        if name not in case.spent and after.get(name) != states and not (name == case.output and accepted):
            return f"{name!r} was changed"
    return None


class _Held:
    """What the process holds now, so that it can be told afterwards what is held in addition."""

    def __init__(self, temporary: Path) -> None:
        self._temporary, self._names = temporary, set(os.listdir(temporary))
        self._descriptors, self._threads = _descriptors(), set(threading.enumerate())

    def left(self) -> str | None:
        """What is held since then, after a second in which it may go."""
        for attempt in range(21):
            if not (found := self._found()):
                return None
            if attempt == 0:
                gc.collect()
            else:
                time.sleep(0.05)
        return found

    def _found(self) -> str | None:
        if names := set(os.listdir(self._temporary)) - self._names:
            return f"temporary file {min(names)!r} is left"
        if added := _descriptors().items() - self._descriptors.items():
            return f"descriptor of {min(added)[1]} is left open"
        if threads := set(threading.enumerate()) - self._threads:
            return f"thread {threads.pop().name} is left"
        if any(path.read_text().strip() for path in Path("/proc/self/task").glob("*/children")):
            return "a child process is left"
        return None


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
