"""The SHA-256 of a file whose parts are written in any order, computed by those who write them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import CancelledError

from l4export.storage.file_records import FileRecord

__all__ = ["WrittenDigest"]

_PIECE_BYTES = 1 << 20


class WrittenDigest:
    """Hashes a file from its beginning, as far as it has been written, and soon after: its pages are still in memory.

    Args:
        descriptor: Of the file, which has its final size.
        size: In bytes.
        starts: Where each of its parts begins. What lies between parts belongs to the one before.
        given_up: Ends the hashing in all threads once it is set.
    """

    def __init__(self, descriptor: int, size: int, starts: Iterable[int], given_up: threading.Event) -> None:
        self._descriptor, self._size, self._given_up = descriptor, size, given_up
        self._missing, self._written = deque(sorted(starts)), set[int]()
        self._lock = threading.Lock()
        self._moving = False
        self._at, self._digest = 0, hashlib.sha256()

    def written(self, start: int) -> None:
        """Note that the part that begins there has been written."""
        with self._lock:
            self._written.add(start)

    def catch_up(self) -> None:
        """Hash what has been written, up to the first part that is missing; nothing if another thread is doing it.

        Raises:
            CancelledError: it was given up.
            OSError: reading failed.
        """
        with self._lock:
            if self._moving:  # it looks again before it ends
                return
            self._moving = True
        while (stop := self._reachable()) is not None:
            self._hash(stop)

    def _reachable(self) -> int | None:
        """How far the file can be hashed; None, and no longer moving, if that has been done."""
        with self._lock:
            while self._missing and self._missing[0] in self._written:
                self._written.discard(self._missing.popleft())
            stop = self._missing[0] if self._missing else self._size
            self._moving = self._at < stop
            return stop if self._moving else None

    def _hash(self, stop: int) -> None:
        start = self._at
        while self._at < stop:
            if self._given_up.is_set():
                raise CancelledError
            piece = os.pread(self._descriptor, min(_PIECE_BYTES, stop - self._at), self._at)
            if not piece:
                raise OSError("a file became shorter while it was written")
            self._digest.update(piece)
            self._at += len(piece)
        # Not for the memory's sake: the kernel begins to write pages at once, instead of when they are too many.
        os.posix_fadvise(self._descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)

    def record(self) -> FileRecord:
        """Size and digest, once everything has been written and hashed."""
        assert self._at == self._size, f"hashed {self._at} of {self._size} bytes"
        return FileRecord(self._size, self._digest.hexdigest())
