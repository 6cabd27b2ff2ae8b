"""A build's memory of what it has written, so that the next one can continue after a kill.

A text file next to the data. Its first line is a JSON object of strings that names everything which decides the bytes
to be written, except the contents of the source files. Every further line is one of two kinds.

A line that begins with `source` stands for what was read of a source file, which is read from its beginning on: the
SHA-256 of these bytes, their number, and the file's name. The last such line of a file counts. Any other line stands
for a unit of work whose bytes are in the data files: the unit's number and the CRC-32 of each of its parts, in
hexadecimal, separated by spaces. Before it the journal says of every file that it was made from how far that has been
read, which is at least as far as the unit needed.

    {"l4export": "0.1.0 ...", "checkpoint": "5c1f...", "options": "...", "plan": "09ab..."}
    source 77f5f8d9...33 67108872 model-00001-of-00050.safetensors
    0 1c291ca3
    2 9e83486d 00f1ab34

A unit counts only if every source file that it was made from still begins with the bytes that the journal has the
digest of. So no unit counts whose source was replaced, even by a file of the same size and times.

A line counts once it has its newline. It is appended after the bytes were written, but nothing says that the disk kept
them in that order: whoever resumes compares the bytes with the CRCs.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from l4export.storage.file_records import FileRecord

__all__ = ["JOURNAL", "Journal", "SourceFiles", "begin_journal", "has_progress", "is_journal"]

JOURNAL = "journal"
_MOST_BYTES = 64 << 20
_UNIT = re.compile(rb"(\d{1,9})((?: [0-9a-f]{8})+)")
_SOURCE = re.compile(rb"source ([0-9a-f]{64}) (\d{1,18}) ([^\n]+)")


class SourceFiles(Protocol):
    """What a journal needs to know of the source files."""

    @property
    def names(self) -> Collection[str]:
        """All of them."""

    def so_far(self, names: Iterable[str]) -> Mapping[str, FileRecord]:
        """How many bytes of each file have been read, from its beginning, and their digest."""

    def unchanged(self, noted: Mapping[str, FileRecord]) -> Collection[str]:
        """The names of the files that begin with the bytes that were noted."""

    def check_open(self) -> None:
        """Raises `SourceChanged` if a file is no longer what it was when it was opened."""


class Journal:
    """The journal of one directory, opened for a build that `head` describes; closes as a context manager.

    Opening it waits until what it says of source files has been compared with them.

    Args:
        directory: Where it lies.
        head: What decides the bytes of all units, but for the sources.
        sources: The files that this build reads.
        reads: The names of the source files that each unit of the build is made from.

    Attributes:
        entries: Unit number -> CRC-32 of each part, as an earlier build with the same head and sources left them.
        changed: What differs from what the journal that was found says: names of the head, or "checkpoint".

    Raises:
        SourceChanged: a source file changed while it was read.
        OSError: when it cannot be read or written.
    """

    def __init__(
        self, directory: Path, head: Mapping[str, str], sources: SourceFiles, reads: Mapping[int, Collection[str]]
    ) -> None:
        self._path, self._head, self._sources, self._reads = directory / JOURNAL, dict(head), sources, reads
        self._descriptor, self._lock = -1, threading.Lock()
        self._noted: dict[str, FileRecord] = {}
        self.entries: dict[int, tuple[int, ...]] = {}
        self.changed: list[str] = []
        if (found := _read(self._path)) and found.units:
            self.changed = [name for name in head if found.head.get(name) != head[name]]
            if found.head == head:
                self._take_over(found)

    def _take_over(self, found: _Found) -> None:
        """Take over the units whose sources begin with what is noted."""
        unchanged = self._sources.unchanged(found.sources)
        self._noted = {name: record for name, record in found.sources.items() if name in unchanged}
        if len(self._noted) < len(found.sources):
            self.changed = ["checkpoint"]
        self.entries = {
            unit: checksums
            for unit, checksums in found.units.items()
            if unit in self._reads and self._noted.keys() >= set(self._reads[unit])
        }

    def start(self) -> None:
        """Begin to write. The head and the units that count replace what was found, in one step."""
        sources = [_source_line(name, record) for name, record in self._noted.items()]
        units = [_unit_line(unit, checksums) for unit, checksums in self.entries.items()]
        self._descriptor = _create(self._path, b"".join([_head_line(self._head), *sources, *units]))

    def add(self, unit: int, checksums: tuple[int, ...]) -> None:
        """Note that a unit's bytes have been written; any thread may.

        Raises:
            SourceChanged: a source is no longer what it was, so the unit may have been made from other bytes.
        """
        with self._lock:
            read = self._sources.so_far(self._reads[unit])
            self._sources.check_open()
            new = {name: record for name, record in read.items() if record != self._noted.get(name)}
            lines = [_source_line(name, record) for name, record in new.items()]
            _append(self._descriptor, b"".join([*lines, _unit_line(unit, checksums)]))
            self._noted |= new

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def begin_journal(directory: Path, program: str) -> None:
    """Write a journal that names only the program, so that `is_journal` recognises the directory."""
    os.close(_create(directory / JOURNAL, _head_line({"l4export": program})))


def is_journal(path: Path) -> bool:
    """Whether a build of l4export, of this version or another, wrote this file."""
    found = _read(path)
    return found is not None and "l4export" in found.head


def has_progress(directory: Path) -> bool:
    """Whether a journal in `directory` lists any unit."""
    found = _read(directory / JOURNAL)
    return found is not None and bool(found.units)


@dataclass
class _Found:
    """What a journal says."""

    head: dict[str, object]
    sources: dict[str, FileRecord] = field(default_factory=dict)
    units: dict[int, tuple[int, ...]] = field(default_factory=dict)


def _read(path: Path) -> _Found | None:
    """What a journal says up to the first line that is damaged; None where there is none or its head is no head."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    first, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]  # what follows the last newline is torn
    try:
        head = json.loads(first)
    except (ValueError, RecursionError):
        return None
    if not isinstance(head, dict):
        return None
    found = _Found(head)
    for line in lines:
        if source := _SOURCE.fullmatch(line):
            found.sources[os.fsdecode(source[3])] = FileRecord(int(source[2]), source[1].decode())
        elif unit := _UNIT.fullmatch(line):
            found.units[int(unit[1])] = tuple(int(crc, 16) for crc in unit[2].split())
        else:  # blocks that a power loss left empty
            break
    return found


def _head_line(head: Mapping[str, str]) -> bytes:
    return json.dumps(head).encode() + b"\n"


def _source_line(name: str, record: FileRecord) -> bytes:
    return f"source {record.sha256} {record.bytes} ".encode() + os.fsencode(name) + b"\n"


def _unit_line(unit: int, checksums: tuple[int, ...]) -> bytes:
    return " ".join([str(unit), *(f"{crc:08x}" for crc in checksums)]).encode() + b"\n"


def _create(path: Path, lines: bytes) -> int:
    """Replace a file by one with these lines, in one step; returns its descriptor, for appending."""
    staged = path.with_name(f"{path.name}.partial")
    staged.unlink(missing_ok=True)
    descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _append(descriptor, lines)
        os.fsync(descriptor)
        os.replace(staged, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _append(descriptor: int, lines: bytes) -> None:
    while lines:  # a part was written: the disk is full, and the next call raises
        lines = lines[os.write(descriptor, lines) :]
