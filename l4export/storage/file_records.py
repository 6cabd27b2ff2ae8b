"""Sizes and digests of files: as long as it takes to read them, in the background, and given up at once if need be."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
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
    """Reads files of different names for their records, from the start on, `threads` at a time (None: one a core).

    Leaving it as a context, as an error or Ctrl-C does, ends the reading that is not done.
    """

    def __init__(self, paths: Sequence[Path], threads: int | None = None) -> None:
        self._given_up = threading.Event()
        self._threads = ThreadPoolExecutor(threads or os.cpu_count())
        self._records = {path.name: self._threads.submit(file_record, path, self._given_up) for path in paths}

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._given_up.set()
        self._threads.shutdown(cancel_futures=True)

    def records(self) -> dict[str, FileRecord]:
        """By the files' names, when all have been read; raises `OSError` for one that cannot be."""
        return {name: record.result() for name, record in self._records.items()}
