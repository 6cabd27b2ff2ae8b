"""Waiting for what another thread does, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Bell"]


class Bell:
    """Wakes everybody who waits, threads and coroutines of any event loop, to look again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._events: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def ring(self) -> None:
        """Something has changed."""
        with self._condition:
            self._condition.notify_all()
            events, self._events = self._events, []
        for loop, event in events:
            with suppress(RuntimeError):  # that loop is closed, so nobody waits there
                loop.call_soon_threadsafe(event.set)

    def wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        """Block until something is so; False when it is not after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(ready, timeout)

    async def wait_async(self, ready: Callable[[], bool]) -> None:
        """Await that something is so."""
        while True:
            with self._condition:
                if ready():
                    return
                event = asyncio.Event()
                self._events.append((asyncio.get_running_loop(), event))
            await event.wait()
