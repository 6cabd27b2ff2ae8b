"""The SHA-256 of a file that follows its readers: every byte is hashed just before it is used.

A checkpoint may be larger than memory. If its digest were read apart from its weights, its bytes would come from the
disk twice. So whoever reads weights through a mapping announces it (`OpenedFile.announce`), and first the bytes up to
there are hashed, in the order of the file, by the thread that asks. They are in the kernel's cache when the mapping is
read a moment later. What nobody asks for is hashed when the record is.
"""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import CancelledError

from l4export.storage.file_records import FileRecord
from l4export.storage.opened_file import OpenedFile

__all__ = ["RunningDigest"]

_PIECE_BYTES = 1 << 20

_AHEAD_BYTES = 32 << 20
"""The kernel is told to fetch so many bytes beyond what was asked for, while that is being used."""


class RunningDigest:
    """The SHA-256 of what has been read of a file, from its beginning; any thread may ask for more.

    Args:
        file: The file, whose descriptor is read.
        given_up: Ends the hashing in all threads once it is set.
    """

    def __init__(self, file: OpenedFile, given_up: threading.Event) -> None:
        self._file, self._given_up = file, given_up
        self._moving = threading.Lock()
        self._reached = (0, hashlib.sha256())
        """Bytes, and their hash, which is never updated: so it can be read while another thread goes on."""
        self._fetched = 0

    def reach(self, stop: int, given_up: threading.Event | None = None) -> None:
        """Return when all bytes before `stop` have been hashed, by this thread or another.

        Raises:
            SourceChanged: the file ended before.
            CancelledError: it was given up.
            OSError: reading failed.
        """
        if self._reached[0] >= stop:
            return
        given_up = given_up or self._given_up
        piece = memoryview(bytearray(min(_PIECE_BYTES, stop - self._reached[0])))
        while self._reached[0] < stop:
            if given_up.is_set():
                raise CancelledError
            with self._moving:
                self._advance(stop, piece)

    def _advance(self, stop: int, piece: memoryview) -> None:
        """Hash one piece more."""
        at, digest = self._reached
        if at >= stop:  # another thread did it meanwhile
            return
        descriptor = self._file.descriptor
        if self._fetched < at + _AHEAD_BYTES // 2:
            os.posix_fadvise(descriptor, at, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            self._fetched = at + _AHEAD_BYTES
        count = os.preadv(descriptor, [piece[: stop - at]], at)
        if not count:
            raise self._file.changed()
        digest = digest.copy()
        digest.update(piece[:count])
        self._reached = (at + count, digest)

    def so_far(self) -> FileRecord:
        """How many bytes have been hashed, and their digest."""
        at, digest = self._reached
        return FileRecord(at, digest.hexdigest())

    def beginning(self, size: int, given_up: threading.Event) -> FileRecord:
        """The digest of the first `size` bytes; what has not been read of them yet is. Raises as `reach`."""
        self.reach(size, given_up)
        found = self.so_far()
        return found if found.bytes == size else self._file.record(given_up, size)

    def record(self, given_up: threading.Event) -> FileRecord:
        """Size and digest of the whole file.

        Raises:
            SourceChanged: the file changed meanwhile.
            CancelledError: it was `given_up`.
            OSError: reading failed.
        """
        self.reach(self._file.size, given_up)
        self._file.check_open()
        return self.so_far()
