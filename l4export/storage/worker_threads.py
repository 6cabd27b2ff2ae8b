"""Threads that end with the work that they were started for, however it ends."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

__all__ = ["worker_threads"]


@contextlib.contextmanager
def worker_threads(count: int | None, given_up: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """`count` threads (None: one a core) for a block of work.

    When the block ends with an error, or with Ctrl-C, which may come as early as while the first thread starts,
    `given_up` is set, what has not begun is left, and what runs is waited for: it should look at `given_up`.
    """
    pool = ThreadPoolExecutor(count or os.cpu_count())
    try:
        yield pool
    except BaseException:
        given_up.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
