"""Sizes and digests of files, read in the background. The reading can be given up at any time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["FileReader", "FileRecord", "file_record"]

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


def file_record(path: Path, given_up: threading.Event | None = None) -> FileRecord:
    """Size and digest of a file, read in a stream; `CancelledError` once it is `given_up`."""
    digest, size, piece = hashlib.sha256(), 0, memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as handle:
        while count := handle.readinto(piece):
            if given_up is not None and given_up.is_set():
                raise CancelledError
            digest.update(piece[:count])
            size += count
    return FileRecord(size, digest.hexdigest())


class FileReader:
    """Reads files for their records, from the start on, `threads` at a time (None: one a core).

    Leaving it as a context, as an error or Ctrl-C does, ends the reading that is not done.

    Args:
        reads: By name, what reads a file until an event is set, such as `OpenedFile.record`.
        threads: Files that are read at a time.
    """

    def __init__(
        self, reads: Mapping[str, Callable[[threading.Event], FileRecord]], threads: int | None = None
    ) -> None:
        self._given_up = threading.Event()
        self._threads = ThreadPoolExecutor(threads or os.cpu_count())
        self._records = {name: self._threads.submit(read, self._given_up) for name, read in reads.items()}

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._given_up.set()
        self._threads.shutdown(cancel_futures=True)

    def record(self, name: str) -> FileRecord:
        """One file's, when it has been read; raises what its reading raised, such as `OSError`."""
        return self._records[name].result()

    def records(self) -> dict[str, FileRecord]:
        """All files', when all have been read; raises as `record`."""
        return {name: self.record(name) for name in self._records}

    def finished(self) -> dict[str, FileRecord]:
        """Of the files that have been read by now."""
        done = {name: future for name, future in self._records.items() if future.done()}
        return {name: future.result() for name, future in done.items() if not future.exception()}
