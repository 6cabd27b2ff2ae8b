"""Sizes and digests of files. The reading can be given up at any time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from l4export.errors import CheckFailed
from l4export.storage.worker_threads import worker_threads

__all__ = ["FileRecord", "file_record", "read_records", "verify_records"]

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


def verify_records(directory: Path, files: Mapping[str, FileRecord], remedy: str) -> None:
    """Check files, by their paths in a directory, against their records.

    Raises:
        CheckFailed: a file is missing, has another size, or another digest; all such files are named, and the remedy.
    """
    faults = {name: _size_fault(directory / name, name, record.bytes) for name, record in files.items()}
    reads = {name: partial(file_record, directory / name) for name, fault in faults.items() if fault is None}
    for name, record in read_records(reads).items():
        if record != files[name]:
            faults[name] = f"{name} has been changed"
    if found := [fault for fault in faults.values() if fault]:
        raise CheckFailed(f"{directory}: {'; '.join(found)}; {remedy}")


def _size_fault(path: Path, name: str, expected: int) -> str | None:
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    return None if size == expected else f"{name} has {size} bytes, not {expected}"
