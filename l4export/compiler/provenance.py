"""What an engine is made from: the code, and the checkpoint's files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from l4export._version import __version__
from l4export.engine.manifest import FORMAT_VERSION
from l4export.storage.file_records import FileRecord, read_records
from l4export.storage.opened_file import OpenedFile
from l4export.storage.running_digest import RunningDigest

__all__ = ["PROGRAM", "Sources", "generator", "program_digest"]

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
because scales of caches and activations are measured by running an engine; the C++ one, in `runtimes/cpp`, is not what
measures them, and is a distribution of its own."""


@functools.cache
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
    paths = [path for package in PROGRAM for path in (root / package).rglob("*.py")]
    modules = {_module(path, root): path for path in paths if "cpp" not in path.relative_to(root).parts}
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

    Attributes:
        names: Of `files`.
        given_up: Set it to end the hashing in all threads.
    """

    def __init__(self, files: Mapping[str, OpenedFile], companions: Mapping[str, OpenedFile]) -> None:
        self.names = tuple(files)
        self.given_up = threading.Event()
        self._files, self._companions = dict(files), dict(companions)
        self._digests = {name: RunningDigest(file, self.given_up) for name, file in files.items()}

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Meanwhile weights are hashed just before they are read, through the same descriptors."""
        for name, file in self._files.items():
            file.follower = self._digests[name].reach
        try:
            yield
        finally:
            for file in self._files.values():
                file.follower = None

    def records(self) -> dict[str, FileRecord]:
        """The sizes and digests of all files, once what has not been hashed yet is. From these a service can tell which
        checkpoint it serves.

        Raises:
            SourceChanged: one changed while it was read.
            OSError: reading failed.
        """
        return read_records({name: digest.record for name, digest in self._digests.items()})

    def so_far(self, names: Iterable[str]) -> dict[str, FileRecord]:
        """How much of each file has been hashed, from its beginning, and its digest. Nothing more was read of it."""
        return {name: self._digests[name].so_far() for name in names}

    def unchanged(self, noted: Mapping[str, FileRecord]) -> set[str]:
        """The names of the files that begin with what was noted of them. Raises as `records`."""
        possible = {
            name: functools.partial(self._digests[name].beginning, record.bytes)
            for name, record in noted.items()
            if name in self._files and record.bytes <= self._files[name].size
        }
        return {name for name, found in read_records(possible).items() if found == noted[name]}

    def check_open(self) -> None:
        """Raise `SourceChanged` for the first file that is no longer what it was when it was opened."""
        for file in self._files.values():
            file.check_open()

    def check_in_place(self) -> None:
        """As `check_open`, and for companions too. Also refuses files that are no longer where they were opened."""
        for file in (*self._files.values(), *self._companions.values()):
            file.check_in_place()
