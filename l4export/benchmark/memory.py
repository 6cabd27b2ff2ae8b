"""This machine's memory: how fast it is read, and how much of it this process takes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

__all__ = ["forget_peak", "process_memory", "read_bandwidth"]

_ROUNDS = 12
_LEAST_BYTES = 512 << 20
_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads together read from memory: the best of several passes over a large buffer.

    The buffer is at least 512 MiB and twice the last-level cache. NumPy's bitwise OR waits for nothing but memory (a
    sum of floats is a tenth slower) and releases the interpreter's lock. The best pass counts, because anything else
    that runs on the machine can only lower the figure.
    """
    size = max(_LEAST_BYTES, 2 * _cache_bytes()) // threads
    parts = [np.ones(size // 8, dtype=np.uint64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as workers:
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(workers.map(np.bitwise_or.reduce, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - began))
    return best


def process_memory() -> dict[str, int]:
    """VmRSS, RssAnon, VmHWM (the peak) and more of this process, in bytes; empty where there is no /proc."""
    try:
        lines = [line.split() for line in _STATUS.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


def forget_peak() -> None:
    """Let VmHWM start from here, where the system allows it; elsewhere it is the peak of the whole process."""
    with suppress(OSError):
        _CLEAR_REFS.write_text("5")


def _cache_bytes() -> int:
    """The last-level cache; 0 where the system does not report it."""
    sizes = [0]
    for file in _CACHE.glob("index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(file.read_text().strip().removesuffix("K")) << 10)
    return max(sizes)
