"""A build's memory of what it has written, so that the next one goes on where it was killed.

A text file beside the data. Its first line is a JSON object that names everything which decides the bytes to be
written, each as a string. Every further line stands for a unit of work whose bytes are in the data files: the unit's
number and the CRC-32 of each of its parts, in hexadecimal, separated by spaces.

    {"l4export": "0.1.0 ...", "checkpoint": "5c1f...", "options": "...", "plan": "09ab..."}
    0 1c291ca3
    2 9e83486d 00f1ab34

A line counts once it has its newline. It is appended after the bytes were written, but nothing says that the disk kept
them in that order: whoever resumes compares the bytes with the CRCs.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import TracebackType

__all__ = ["JOURNAL", "Journal", "has_progress"]

JOURNAL = "journal"
_ENTRY = re.compile(rb"(\d{1,9})((?: [0-9a-f]{8})+)")


class Journal:
    """The journal of one directory, opened for a build that `head` describes; closes as a context manager.

    Attributes:
        entries: Unit number -> CRC-32 of each part, as an earlier build with the same head left them.
        changed: The names of what differs from the head of the journal that was found; it is not gone on with.

    Raises:
        OSError: when it cannot be read or written.
    """

    def __init__(self, directory: Path, head: dict[str, str]) -> None:
        self.entries: dict[int, tuple[int, ...]] = {}
        self._path = directory / JOURNAL
        found, entries, length = _read(self._path)
        self.changed = [name for name in head if found.get(name) != head[name]] if found else []
        self._head = None if found == head else json.dumps(head).encode() + b"\n"
        if self._head is None:
            self.entries = entries
        self._length = length
        self._descriptor = -1

    def start(self) -> None:
        """Begin to write: after what was found, less a torn line; or anew."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._descriptor, self._length if self._head is None else 0)
        if self._head is not None:
            _append(self._descriptor, self._head)

    def add(self, unit: int, checksums: tuple[int, ...]) -> None:
        """Note that a unit's bytes have been written. One call to the system, so several threads may."""
        _append(self._descriptor, " ".join([str(unit), *(f"{crc:08x}" for crc in checksums)]).encode() + b"\n")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def has_progress(directory: Path) -> bool:
    """Whether a journal in `directory` tells of any unit."""
    return bool(_read(directory / JOURNAL)[1])


def _read(path: Path) -> tuple[dict[str, object], dict[int, tuple[int, ...]], int]:
    """Head, entries and the bytes they take; nothing where there is no journal or its head is no head."""
    if path.is_symlink() or not path.is_file():
        return {}, {}, 0
    first, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]  # what follows the last newline is torn
    try:
        head = json.loads(first)
    except ValueError:
        return {}, {}, 0
    if not isinstance(head, dict):
        return {}, {}, 0
    entries, length = {}, len(first) + 1
    for line in lines:
        entry = _ENTRY.fullmatch(line)
        if not entry:  # blocks that a power loss left empty
            break
        entries[int(entry[1])] = tuple(int(crc, 16) for crc in entry[2].split())
        length += len(line) + 1
    return head, entries, length


def _append(descriptor: int, line: bytes) -> None:
    if (written := os.write(descriptor, line)) < len(line):  # room for half a line: the disk is full
        os.write(descriptor, line[written:])
