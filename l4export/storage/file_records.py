"""Sizes and digests of files. The reading can be given up at any time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path

from l4export.storage.worker_threads import worker_threads

__all__ = ["FileRecord", "file_record", "read_records"]

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


def read_records(
    reads: Mapping[str, Callable[[threading.Event], FileRecord]], threads: int | None = None
) -> dict[str, FileRecord]:
    """Read files for their records, `threads` at a time (None: one a core).

    An error, or Ctrl-C, ends the reading that is not done; the error of the first file that failed is raised.

    Args:
        reads: By name, what reads a file until an event is set, such as `OpenedFile.record`.
        threads: Files that are read at a time.
    """
    given_up = threading.Event()
    with worker_threads(threads, given_up) as workers:
        records = {name: workers.submit(read, given_up) for name, read in reads.items()}
        return {name: record.result() for name, record in records.items()}
