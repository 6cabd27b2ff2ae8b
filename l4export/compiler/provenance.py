"""What an engine is made from: the code, and the checkpoint's files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from l4export._version import __version__
from l4export.engine.manifest import FORMAT_VERSION
from l4export.errors import InputError
from l4export.storage.file_records import FileReader

__all__ = ["PROGRAM", "Sources", "generator", "program_digest"]

_READERS = 2
"""Files that are read at a time: one alone would often be read for longer than the weights take to be written."""

PROGRAM = (
    "calibration",
    "checkpoint",
    "compiler",
    "engine",
    "graph",
    "inspection",
    "machine",
    "model",
    "passes",
    "quantization",
    "reference",
    "runtimes",
    "storage",
    "targets",
    "weights",
)
"""Packages whose code decides an engine's bytes: the compiler, and everything that it imports. Runtimes are among them
because scales of caches and activations are measured by running an engine."""


@cache
def generator() -> str:
    """The program as a manifest names it: its version, the manifest's format version, and `program_digest`."""
    return f"l4export {__version__} (format {FORMAT_VERSION}, code {program_digest()[:16]})"


def program_digest(root: Path = Path(__file__).parents[1]) -> str:
    """SHA-256 (hex) over the name and the source of every module of `PROGRAM`, in the order of the names.

    Args:
        root: The directory of the package `l4export`. A checkout and an installed wheel give the same digest, because
            modules count by their names, wherever their files lie.
    """
    digest = hashlib.sha256()
    modules = {_module(path, root): path for package in PROGRAM for path in (root / package).rglob("*.py")}
    for name in sorted(modules):
        digest.update(f"{name}\0".encode() + modules[name].read_bytes() + b"\0")
    return digest.hexdigest()


def _module(path: Path, root: Path) -> str:
    """The dotted name of a module, such as `passes.fuse_experts`; a package is called `passes.__init__`."""
    return ".".join(path.relative_to(root).with_suffix("").parts)


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
