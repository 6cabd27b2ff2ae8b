"""A child process that does untrusted work: its time, its memory and the size of its answers are bounded.

A library that panics or crashes, and a template that never ends, end the child and nothing else. The child's side is
`l4export.runtimes.text.helper`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import weakref
from typing import Any

from l4export.errors import EnvironmentLacks

__all__ = ["HelperFailed", "HelperProcess"]

START_SECONDS = 60.0
"""How long a child may take to start, on a machine that is busy with other things."""

_MAIN = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from l4export.runtimes.text.helper import main
main(*sys.argv[2:])"""


class HelperFailed(Exception):
    """What was asked for failed, or exceeded a limit; the message says why, as what follows "chat template: "."""


class HelperProcess:
    """Children for one kind of work. One is started at the first request and kept for the next ones.

    Any thread may ask; several at once have a child each, of which one is kept. A child that fails to answer in time
    is killed, and the next request starts another. All of them end with this object, and with the program.

    Args:
        task: A key of `l4export.runtimes.text.helper.TASKS`.
        memory: Bytes of address space that a child may use.
        reply: The most bytes of an answer.
    """

    def __init__(self, task: str, memory: int, reply: int) -> None:
        self.task, self.memory, self.reply = task, memory, reply
        self._idle: list[_Child] = []  # appending and popping are atomic
        weakref.finalize(self, _end_all, self._idle)

    def ask(self, request: Any, seconds: float, payload: bytes = b"") -> Any:
        """Send a JSON value, with bytes beside it, and return the answer, a JSON value.

        Args:
            request: Anything that JSON can say.
            seconds: Time that the answer may take.
            payload: Bytes that the work is done on.

        Raises:
            HelperFailed: the work failed, took too long, or needed too much memory.
            EnvironmentLacks: a package is missing, or no process can be started.
        """
        child = self._take()
        try:
            answer = child.exchange([json.dumps(request).encode(), payload], seconds, self.reply)
        except TimeoutError:
            child.end()
            raise HelperFailed(f"it takes more than {seconds:g} seconds") from None
        except (OSError, ValueError, RecursionError):  # the child is gone, or what it says is no answer
            child.end()
            raise HelperFailed(f"it crashes, or it needs more than {self.memory >> 20} MiB of memory") from None
        except BaseException:
            child.end()
            raise
        self._give_back(child)
        if "missing" in answer:
            lacking = f"the package {answer['missing']} is not installed: pip install 'l4export[cpu]'"
            raise EnvironmentLacks(lacking) from None
        if "error" in answer:
            raise HelperFailed(str(answer["error"]))
        return answer["value"]

    def close(self) -> None:
        """End the children that wait."""
        _end_all(self._idle)

    def _take(self) -> _Child:
        while self._idle:
            with contextlib.suppress(IndexError):
                child = self._idle.pop()
                if child.is_ready():
                    return child
        return _Child(self.task, self.memory)

    def _give_back(self, child: _Child) -> None:
        self._idle.append(child)
        while len(self._idle) > 1:
            with contextlib.suppress(IndexError):
                self._idle.pop(0).end()


class _Child:
    """One process, and the socket to it."""

    def __init__(self, task: str, memory: int) -> None:
        self.owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        # Not this program's working directory, variables or user packages: the same modules as here, and no others.
        command = [sys.executable, "-I", "-c", _MAIN, json.dumps([str(path) for path in sys.path]), task, str(memory)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._socket.close()
            raise EnvironmentLacks(f"no helper process can be started with {sys.executable!r}: {error}") from None
        finally:
            theirs.close()
        try:
            self._receive(time.monotonic() + START_SECONDS, 0)  # an empty frame says that it has started
        except (OSError, ValueError):
            self.end()
            reason = f"a helper process does not start: {sys.executable!r} cannot import l4export"
            raise EnvironmentLacks(reason) from None

    def is_ready(self) -> bool:
        """Tell whether the process is there, and this program's: a forked one leaves its parent's children alone."""
        return self.owner == os.getpid() and self._process.poll() is None

    def exchange(self, frames: list[bytes], seconds: float, largest: int) -> dict[str, Any]:
        """Send frames and receive one, a JSON object; raises `TimeoutError`, other `OSError`s, or `ValueError`."""
        deadline = time.monotonic() + seconds
        for frame in [json.dumps(seconds).encode(), *frames]:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(len(frame).to_bytes(8, "big") + frame)
        answer = json.loads(self._receive(deadline, largest))
        if not isinstance(answer, dict) or not answer.keys() & {"value", "error", "missing"}:
            raise ValueError("not an answer")
        return answer

    def end(self) -> None:
        """End the process at once."""
        self._socket.close()
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()

    def _receive(self, deadline: float, largest: int) -> bytes:
        size = int.from_bytes(self._read(8, deadline), "big")
        if size > largest:
            raise ValueError("too large an answer")
        return self._read(size, deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._socket.settimeout(_left(deadline))
            piece = self._socket.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise ConnectionResetError
            data += piece
        return bytes(data)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _end_all(children: list[_Child]) -> None:
    while children:
        children.pop().end()
