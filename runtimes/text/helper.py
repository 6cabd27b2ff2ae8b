"""What runs in a helper process: it answers requests, one after the other, until nobody is left to ask.

It imports as little as it can, because a person waits while it starts.
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from l4export.errors import one_line

__all__ = ["TASKS", "main"]

TASKS = {
    "template": ("jinja2", "l4export.runtimes.text.template_sandbox"),
    "tokenizer": ("tokenizers", "l4export.runtimes.text.tokenizer_trial"),
}
"""For each task the package that it needs and the module whose `answer` does it.

`answer` takes the request, a JSON value, and bytes; it returns a JSON value. What it raises becomes the reason that is
given, so it may raise anything.
"""

_SPARE_SECONDS = 2


def main(task: str, memory: str) -> None:
    """Answer what comes from standard input, a socket.

    Args:
        task: A key of `TASKS`.
        memory: Bytes of address space that may be used from now on.
    """
    package, module = TASKS[task]
    answer: Callable[[Any, bytes], Any] | None
    try:
        answer = import_module(module).answer
    except ImportError:
        answer = None
    _limit(int(memory))
    with contextlib.suppress(OSError), socket.socket(fileno=0) as channel:
        _send(channel, b"")
        while (seconds := _receive(channel)) is not None:
            request, payload = _receive(channel), _receive(channel)
            if request is None or payload is None:
                return
            _limit_time(float(seconds))
            _send(channel, _answer(answer, package, request, payload))


def _answer(answer: Callable[[Any, bytes], Any] | None, package: str, request: bytes, payload: bytes) -> bytes:
    if answer is None:
        return json.dumps({"missing": package}).encode()
    try:
        return json.dumps({"value": answer(json.loads(request), payload)}).encode()
    except MemoryError:
        reason = "it needs too much memory"
    except RecursionError:
        reason = "it is nested too deeply"
    except BaseException as error:  # a panic of a Rust library is no Exception
        reason = one_line(error)
    return json.dumps({"error": reason}).encode()


def _limit(memory: int) -> None:
    """Bound memory, and write no files; what the system cannot do is left undone, and time is bounded all the same."""
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, value))


def _limit_time(seconds: float) -> None:
    """End this process by itself if nobody is left to end it."""
    try:
        import resource
    except ImportError:
        return
    limit = math.ceil(time.process_time() + seconds) + _SPARE_SECONDS
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _receive(channel: socket.socket) -> bytes | None:
    """A frame; None when there will be no more."""
    head = _read(channel, 8)
    return None if head is None else _read(channel, int.from_bytes(head, "big"))


def _read(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _send(channel: socket.socket, frame: bytes) -> None:
    channel.sendall(len(frame).to_bytes(8, "big") + frame)
