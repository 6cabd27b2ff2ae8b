"""What an engine is made from: the code, and the checkpoint's files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import l4export
from l4export import passes
from l4export.errors import InputError
from l4export.file_records import FileReader
from l4export.manifest import FORMAT_VERSION

__all__ = ["Sources", "generator"]

_READERS = 2
"""Files that are read at a time: one alone would often be read for longer than the weights take to be written."""

_WITHOUT_A_SAY = {"cli", "runtimes"}
"""Packages of the program that change no engine."""


@cache
def generator() -> str:
    """The program: its version, and a digest of its code as it is, which may change within a version."""
    digest = hashlib.sha256()
    for package in (l4export, passes):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if relative.parts[0] not in _WITHOUT_A_SAY:
                digest.update(f"{relative.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return f"l4export {l4export.__version__} (format {FORMAT_VERSION}, code {digest.hexdigest()[:16]})"


@dataclass(frozen=True)
class Sources:
    """Files that an engine is made from, as they were when the build began: path, size in bytes, time in ns."""

    stamps: tuple[tuple[Path, int, int], ...]

    @staticmethod
    def of(paths: Sequence[Path]) -> Sources:
        """The files as they are now; `InputError` for one that is missing."""
        return Sources(tuple((path, *_stamp(path)) for path in paths))

    def check_unchanged(self) -> None:
        """Raise `InputError` for the first file that is no longer what it was."""
        for path, *stamp in self.stamps:
            if _stamp(path) != tuple(stamp):
                raise InputError(f"{path}: changed during the build; build again when it is complete")

    def reader(self) -> FileReader:
        """Begins to read all of them: by their digests a service can tell which checkpoint it serves."""
        return FileReader([path for path, *_ in self.stamps], _READERS)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path}: has gone during the build; build again when the checkpoint is complete") from None
    return status.st_size, status.st_mtime_ns
