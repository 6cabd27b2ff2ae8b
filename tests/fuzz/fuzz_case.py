"""Cases of hostile inputs, and the judgement of how an operation on one ended.

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
import gc
import os
import random
import re
import resource
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from l4export.errors import L4Error

__all__ = ["MEMORY", "MESSAGE", "Case", "Outcome", "Subject", "examine"]

MEMORY = 10**9
"""Bytes of resident memory that an operation may take, its libraries included."""

MESSAGE = 2000
"""Characters that an error may have, and that are kept of what was written."""


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


def examine(
    subject: Subject, number: int, place: Path, temporary: Path, on_made: Callable[[tuple[str, ...]], object]
) -> Outcome:
    """Make a case in the empty directory `place`, run it and judge it; `on_made` is told what it is before it runs."""
    try:
        case = subject.make(random.Random(f"{subject.name}/{number}"), place)
    except Exception as error:
        return Outcome(number, "not made", f"{type(error).__name__}: {error}", _trace(error))
    on_made(tuple(case.what))
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
    return Outcome(number, kind, detail[:MESSAGE], trace, tuple(case.what), peak)


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _fault(error: L4Error) -> str | None:
    """What is wrong with a refusal."""
    message = str(error)
    if error.exit_code not in (2, 3, 4):
        return f"exit code {error.exit_code}"
    if not message or len(message.splitlines()) != 1 or len(message) > MESSAGE:
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
        return "a child process is left" if _has_children() else None


def _has_children() -> bool:
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            if path.read_text().strip():
                return True
    return False


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found
