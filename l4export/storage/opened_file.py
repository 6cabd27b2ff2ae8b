"""A file that is opened once. Everything that is read from it is read through one descriptor, which identifies it.

A path may lead to another file from one moment to the next, and two files can be given the same size and times. So the
stamp of a file is taken from its descriptor before anything is read. It holds the device, the inode, and the time of
the last change of status (ctime), which no program can set. As long as the stamp is the same, so are the bytes.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

from l4export.errors import InputError, StorageError
from l4export.storage.file_records import FileRecord
from l4export.storage.regular_files import open_descriptor

__all__ = ["OpenedFile", "SourceChanged"]

_PIECE_BYTES = 1 << 20

_TICK_NS = 10_000_000
"""The longest tick of the clock that the kernel stamps files with: two changes within one have the same ctime."""


class SourceChanged(InputError):
    """A file is no longer what it was when it was opened."""


@dataclass(frozen=True)
class _Stamp:
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class OpenedFile:
    """A regular file, opened to be read; a symbolic link to one is fine.

    Attributes:
        path: Where it was opened.
        descriptor: For `mmap` and `pread`; closed when the object goes.
        size: In bytes, when it was opened.
        follower: Told how far the file is about to be read through a mapping, before it is; None: nobody wants to know.

    Raises:
        InputError: there is no such file, or it is not a regular one.
        StorageError: it may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.descriptor = path, -1
        self.descriptor = open_descriptor(path, "is the download complete?")
        status = os.fstat(self.descriptor)
        _settle(status)
        self._stamp, self.size = _Stamp.of(status), status.st_size
        self.follower: Callable[[int], None] | None = None

    def announce(self, stop: int) -> None:
        """Say that bytes before `stop` are about to be read through a mapping. Raises what the `follower` does."""
        if self.follower:
            self.follower(stop)

    def read(self) -> bytes:
        """All bytes; raises as `check_open`, and `StorageError` when reading fails."""
        try:
            data = b"".join(bytes(piece) for piece in self._pieces())
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}; copy the file again") from error
        self.check_open()
        return data

    def read_at(self, start: int, count: int) -> bytes:
        """The `count` bytes from `start` on; raises `InputError` where the file has fewer, and as `read`."""
        data = b""
        try:
            while len(data) < count and (piece := os.pread(self.descriptor, count - len(data), start + len(data))):
                data += piece
        except OSError as error:
            raise StorageError(f"{self.path}: reading failed ({error.strerror}); check the disk") from None
        if len(data) < count:
            raise InputError(f"{self.path}: truncated while being read; download or convert the file again")
        return data

    def record(self, given_up: threading.Event | None = None, stop: int | None = None) -> FileRecord:
        """Size and digest of the bytes before `stop` (None: of all), read in a stream.

        Raises:
            SourceChanged: the file changed meanwhile.
            CancelledError: it was `given_up`.
            OSError: reading failed.
        """
        digest, size = hashlib.sha256(), 0
        for piece in self._pieces(stop):
            if given_up is not None and given_up.is_set():
                raise CancelledError
            digest.update(piece)
            size += len(piece)
        self.check_open()
        return FileRecord(size, digest.hexdigest())

    def copy_to(self, target: Path) -> FileRecord:
        """Write its bytes to the new file `target`; returns their size and digest. Raises as `record`."""
        digest, size = hashlib.sha256(), 0
        with target.open("xb") as file:
            for piece in self._pieces():
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        self.check_open()
        return FileRecord(size, digest.hexdigest())

    def check_open(self) -> None:
        """Raise `SourceChanged` unless the file that is open is as it was when it was opened."""
        if _Stamp.of(os.fstat(self.descriptor)) != self._stamp:
            raise self.changed()

    def check_in_place(self) -> None:
        """Raise `SourceChanged` unless the file is as it was when it was opened, and its path still leads to it."""
        self.check_open()
        try:
            found = _Stamp.of(self.path.stat())
        except FileNotFoundError:
            raise SourceChanged(f"{self.path}: was removed after it was opened; build again when it is there") from None
        if found != self._stamp:
            raise self.changed()

    def changed(self) -> SourceChanged:
        """The error for a file that is not what it was."""
        return SourceChanged(f"{self.path}: changed after it was opened; build again when it is complete")

    def _pieces(self, stop: int | None = None) -> Iterator[memoryview]:
        """Its bytes before `stop`, in pieces that are valid until the next is asked for."""
        buffer, at = memoryview(bytearray(min(_PIECE_BYTES, self.size + 1))), 0
        while count := os.preadv(self.descriptor, [buffer if stop is None else buffer[: stop - at]], at):
            yield buffer[:count]
            at += count

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _settle(status: os.stat_result) -> None:
    """Wait until the tick in which a file was last changed is over, so that a further change has another ctime."""
    left = status.st_ctime_ns + _TICK_NS - time.time_ns()
    if 0 < left <= _TICK_NS:
        time.sleep(left / 1e9)
