"""What a build makes, an engine or a checkpoint, appears whole or not at all.

It is written as the hidden sibling `.{name}.partial`, which has no manifest until everything else is on disk. At the
end the sibling is renamed. What is being replaced stays in place until that moment. A build that fails or is
killed after it has written weights leaves the sibling with its journal, and the next build continues from there. A
calibration works in a subdirectory, `calibration`, with a journal of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from l4export.compiler.ownership import (
    CALIBRATION,
    check_product,
    check_unfinished,
    clear_unfinished,
    files_in,
    lies_in,
    remove_calibration,
    remove_product,
    remove_unfinished,
)
from l4export.compiler.products import ENGINE, Product
from l4export.compiler.provenance import generator
from l4export.errors import InputError, StorageError
from l4export.storage.journal import JOURNAL, begin_journal, has_progress, is_journal
from l4export.storage.opened_file import SourceChanged

__all__ = ["OutputDirectory"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class OutputDirectory:
    """The place of a product, before and while it is built.

    Args:
        path: The final directory; its parent must exist.
        replace: Whether a product of the same kind that is already there may be replaced.
        product: The kind.

    Attributes:
        partial: Where it is written.
        calibration: The work directory of a calibration, which ends with the build.
    """

    def __init__(self, path: Path, replace: bool, product: Product = ENGINE) -> None:
        self.path = Path(os.path.abspath(path))
        self.replace = replace
        self.product = product
        self.partial = self.path.parent / f".{self.path.name}.partial"
        self.calibration = self.partial / CALIBRATION

    @property
    def begun(self) -> bool:
        """Whether an earlier build left work that the next one can continue."""
        return has_progress(self.partial) or has_progress(self.calibration)

    def check(self, reads: Iterable[Path] = (), writes: Iterable[Path] = ()) -> None:
        """Refuse what can be refused before any work is done.

        Args:
            reads: Files and directories that the build reads.
            writes: Files and directories that it writes beside the engine.

        Raises:
            InputError: the directory exists and may not be replaced, or is not an engine; what is read or written lies
                in it.
            StorageError: the parent is missing or not writable.
        """
        if not self.path.name:
            raise InputError(f"{self.path}: cannot be {self.product.what}; name a new one")
        for place in (self.path, self.partial):
            if os.path.lexists(place) and (inside := next((p for p in _entries(reads) if lies_in(p, place)), None)):
                raise InputError(f"{place}: {inside}, which the build reads, lies there; choose another place")
            if inside := next((path for path in writes if lies_in(path, place)), None):
                raise InputError(f"{inside}: lies inside the {self.product.name} {place}; choose another place")
        parent = self.path.parent
        if not parent.is_dir():
            raise StorageError(f"{parent}: no such directory; create it first")
        try:
            if os.path.lexists(self.path):
                self._check_replaceable()
            check_unfinished(self.partial)
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}; choose another place") from error
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StorageError(f"{parent}: not writable; choose another place or change its permissions")

    def _check_replaceable(self) -> None:
        """What exists must be a product of the same kind that holds nothing else."""
        check_product(self.path, self.product)
        if not self.replace:
            raise InputError(f"{self.path}: exists already; choose another directory or pass --force")

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield the directory to write into, with what an earlier build left there.

        The directory is gone at the end, finished or not, with two exceptions. It stays after an error if its journal
        lists weights that were written, unless the error is bad input: correcting the input changes the bytes. And it
        stays after a source has changed, because the journal tells which bytes were made from the source that was read.

        Raises:
            InputError: another build is writing to the same place, or something else lies there.
        """
        with contextlib.suppress(FileExistsError):
            self.partial.mkdir()
        lock = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another build is writing it; wait for it to end") from None
            if not self._is_partial(lock):
                raise InputError(f"{self.path}: another build has just ended; build again")
            check_unfinished(self.partial)
            keep = False
            try:
                if not is_journal(self.partial / JOURNAL):
                    begin_journal(self.partial, generator())
                yield self.partial
            except BaseException as error:
                keep = self.begun and (isinstance(error, SourceChanged) or not isinstance(error, InputError))
                raise
            finally:
                if not keep and self._is_partial(lock):
                    with contextlib.suppress(OSError):  # the error that led here is the one to be told
                        remove_unfinished(self.partial)
        finally:
            os.close(lock)

    def clear_leftover(self) -> None:
        """Remove what a kill left of an engine that was being replaced; work that can be continued stays."""
        if self.partial.is_dir() and not self.begun:
            with contextlib.suppress(InputError), self.writing():  # another build may have begun meanwhile
                pass

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove what an earlier build left in the partial directory, but for the journal and the files that `keep`
        names, and the directory of a calibration if it is named there."""
        clear_unfinished(self.partial, [JOURNAL, *keep])

    def _is_partial(self, lock: int) -> bool:
        """Whether the directory that is locked still has the partial directory's name."""
        return self.partial.exists() and os.path.samestat(os.fstat(lock), os.lstat(self.partial))

    def check_room(self, expected_bytes: int) -> None:
        """Raise `StorageError` if fewer bytes are free. What an earlier build left counts as free: the next build
        continues it or removes it."""
        free = shutil.disk_usage(self.partial).free
        left = [entry for folder in (self.partial, self.calibration) if folder.is_dir() for entry in os.scandir(folder)]
        taken = sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in left if entry.name != JOURNAL)
        if free + taken < expected_bytes:
            raise StorageError(
                f"{self.path.parent}: {expected_bytes - taken:,} bytes are needed and {free:,} are free; make room"
            )

    def finish(self, manifest: str) -> None:
        """Write the manifest, force everything to disk and move the directory to its name.

        Raises:
            StorageError: something has appeared in the engine's place that would be lost.
        """
        for name, _ in files_in(self.partial, self.product.folders):
            if name not in (JOURNAL, CALIBRATION):
                _sync(self.partial / name)
        replaced = self.replace and os.path.lexists(self.path)
        if replaced:
            self._check_still_replaceable()
        staged = self.partial / self.product.staged_manifest
        staged.parent.mkdir(exist_ok=True)
        staged.write_text(manifest, encoding="utf-8")
        _sync(staged)
        remove_calibration(self.partial)
        (self.partial / JOURNAL).unlink()  # as late as can be: from here on a kill costs all the work
        staged.rename(self.partial / self.product.manifest)
        for folder in self.product.folders:
            if (self.partial / folder).is_dir():
                _sync(self.partial / folder)
        _sync(self.partial)
        if replaced:
            _exchange(self.partial, self.path)
            with contextlib.suppress(OSError):  # the new one is in its place; the next build clears up
                remove_product(self.partial, self.product)
        else:
            os.rename(self.partial, self.path)
        _sync(self.path.parent)

    def _check_still_replaceable(self) -> None:
        try:
            self._check_replaceable()
        except InputError as error:
            raise StorageError(str(error)) from error


def _entries(paths: Iterable[Path]) -> Iterator[Path]:
    """The paths, and the files in those that are directories: any of them may be a link to somewhere else."""
    for path in paths:
        yield path
        with contextlib.suppress(OSError):  # not a directory; an unreadable one is reported by its reader
            yield from (entry for entry in path.iterdir() if entry.is_file())


def _exchange(a: Path, b: Path) -> None:
    """Swap two directories in one step (Linux), or in two where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
        if not failed:
            return
    aside = b.with_name(f".{b.name}.replaced")
    os.rename(b, aside)
    os.rename(a, b)
    os.rename(aside, a)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
