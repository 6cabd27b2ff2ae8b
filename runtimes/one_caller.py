"""Objects that one caller at a time may use. A second caller is refused at once and never waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import ClassVar, Concatenate, NamedTuple, ParamSpec, TypeVar

from l4export.errors import InputError

__all__ = ["OneCaller", "exclusive"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="OneCaller")


class _Call(NamedTuple):
    """A method that runs, and the thread in which it does."""

    method: str
    thread: int


class OneCaller:
    """Base of objects whose `exclusive` methods exclude each other, whichever threads they are called from.

    There is no lock that anybody could wait for: a call enters itself into a dictionary, which Python does in one step,
    and is refused if another one is there. So nothing can deadlock, a signal handler included.
    """

    _what: ClassVar[str]
    """The object as its messages name it, such as "the session"."""
    _remedy: ClassVar[str]
    """What the second caller should do."""

    def __init__(self) -> None:
        self._running: dict[str, _Call] = {}


def exclusive(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Refuse a call of this method with `InputError` while any exclusive method of its object runs."""
    name = method.__name__.strip("_")

    @wraps(method)
    def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        call, running = _Call(name, threading.get_ident()), self._running
        try:
            if (other := running.setdefault("now", call)) is not call:
                where = "this" if other.thread == call.thread else "another"
                raise InputError(f"{self._what} is in use: {other.method} runs in {where} thread; {self._remedy}")
            return method(self, *args, **kwargs)
        finally:
            # Also after an interruption that came between entering and running. And no interruption comes in here:
            # Python looks for signals when a call returns, and there is none.
            try:
                if running["now"] is call:
                    del running["now"]
            except KeyError:
                pass

    return guarded
