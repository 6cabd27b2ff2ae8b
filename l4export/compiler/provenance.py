"""What an engine is made from: the code, and the checkpoint's files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from l4export._version import __version__
from l4export.engine.manifest import FORMAT_VERSION
from l4export.storage.file_records import FileReader, FileRecord
from l4export.storage.opened_file import OpenedFile

__all__ = ["PROGRAM", "Sources", "generator", "program_digest"]

_READERS = 2
"""Files that are read at a time. Reading one at a time would often take longer than writing the weights."""

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


class Sources:
    """The files that an engine is made from. What was read from them is what is recorded, checked and copied.

    Args:
        files: config.json and the files with weights, by name; the manifest lists them.
        companions: The files that are copied into the engine, by name.
    """

    def __init__(self, files: Mapping[str, OpenedFile], companions: Mapping[str, OpenedFile]) -> None:
        self.names = tuple(files)
        self._files, self._companions = dict(files), dict(companions)
        self._reader: FileReader | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Read the files for their digests in the background, through the descriptors that weights are read from."""
        with FileReader({name: file.record for name, file in self._files.items()}, _READERS) as self._reader:
            yield

    def records(self) -> dict[str, FileRecord]:
        """Wait until all files have been read, and return their sizes and digests. From these a service can tell which
        checkpoint it serves.

        Raises:
            SourceChanged: one changed while it was read.
            OSError: reading failed.
        """
        return self._begun.records()

    def known(self) -> dict[str, str]:
        """The SHA-256 (hex) of every file that has been read to its end by now, by name."""
        return {name: record.sha256 for name, record in self._begun.finished().items()}

    def sha256(self, name: str) -> str | None:
        """One file's digest, when it has been read; None if it is not among the files. Raises as `records`."""
        return self._begun.record(name).sha256 if name in self._files else None

    def check_open(self) -> None:
        """Raise `SourceChanged` for the first file that is no longer what it was when it was opened."""
        for file in self._files.values():
            file.check_open()

    def check_in_place(self) -> None:
        """As `check_open`, and for companions too. Also refuses files that are no longer where they were opened."""
        for file in (*self._files.values(), *self._companions.values()):
            file.check_in_place()

    @property
    def _begun(self) -> FileReader:
        assert self._reader is not None, "within `reading` alone"
        return self._reader
