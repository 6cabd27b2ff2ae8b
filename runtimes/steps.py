"""Iterators for one caller at a time, also for `async for`."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from l4export.errors import InputError
from l4export.runtimes.one_caller import OneCaller, exclusive

__all__ = ["Steps"]

T = TypeVar("T")


class Steps(OneCaller, Iterator[T], Generic[T]):
    """An iterator for one caller at a time: `next` is refused with `InputError` while another `next` runs.

    `async for` computes each item in a thread, so that the event loop goes on. A call that is cancelled ends when that
    thread does, for nothing can end a thread. What it has computed is kept and is the next item, whoever asks for it.
    """

    _what = "the generation"
    _remedy = "give each thread a generation of its own, or wait for that call to end"

    def __init__(self) -> None:
        super().__init__()
        self._ahead: deque[T] = deque()

    @abstractmethod
    def _step(self) -> T:
        """The next item; `StopIteration` at the end, and whenever it is asked for after that."""

    @exclusive
    def __next__(self) -> T:
        return self._ahead.popleft() if self._ahead else self._step()

    def __aiter__(self) -> Steps[T]:
        return self

    async def __anext__(self) -> T:
        call = asyncio.create_task(asyncio.to_thread(self._next_in_a_thread))
        try:
            there = await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait([call])
            call.exception()  # whoever asks again sees it again
            raise
        if not there:
            raise StopAsyncIteration
        try:
            return self._ahead.popleft()
        except IndexError:  # another caller took it between the thread's end and this
            raise InputError(f"{self._what} is in use: another task asks for the same item; {self._remedy}") from None

    @exclusive
    def _next_in_a_thread(self) -> bool:
        """Compute an item unless one is there; tells whether one is. (`StopIteration` cannot leave a thread.)"""
        try:
            if not self._ahead:
                self._ahead.append(self._step())
        except StopIteration:
            return False
        return True
