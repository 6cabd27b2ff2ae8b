"""An engine directory appears whole or not at all.

It is written as the hidden sibling `.{name}.partial`, which has no manifest until everything else is on disk, and
renamed at the end. An engine that is being replaced stays in place until that moment. A build that fails or is killed
leaves the sibling with its journal, for the next build to go on with, once there is anything in it to keep. A
calibration has a directory of its own in it, `calibration`, with a journal of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from l4export.engine.companions import is_companion
from l4export.engine.manifest import DECODER, MANIFEST, load_manifest
from l4export.errors import InputError, StorageError
from l4export.storage.journal import JOURNAL, has_progress

__all__ = ["CALIBRATION", "CALIBRATION_REPORT", "EngineDirectory"]

CALIBRATION = "calibration"
"""The work directory of a calibration, which ends with the build."""

CALIBRATION_REPORT = "calibration.json"
"""The file of an engine that tells how its calibration went."""


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class EngineDirectory:
    """The place of an engine, before and while it is built.

    Args:
        path: The final directory; its parent must exist.
        replace: Whether an engine that is already there may be replaced.

    Attributes:
        partial: Where it is written.
        calibration: The work directory of a calibration, which ends with the build.
    """

    def __init__(self, path: Path, replace: bool) -> None:
        self.path = Path(os.path.abspath(path))
        self.replace = replace
        self.partial = self.path.parent / f".{self.path.name}.partial"
        self.calibration = self.partial / CALIBRATION

    def check(self, dump_ir: Path | None = None) -> None:
        """Refuse what can be refused before any work is done.

        Args:
            dump_ir: Where graphs are to be dumped, which may not be the engine itself.

        Raises:
            InputError: the directory exists and may not be replaced, or is not an engine.
            StorageError: the parent is missing or not writable.
        """
        if not self.path.name:
            raise InputError(f"{self.path}: cannot be an engine directory; name a new one")
        if os.path.lexists(self.path):
            self._check_replaceable()
        if dump_ir is not None and self.path in [dump_ir.absolute(), *dump_ir.absolute().parents]:
            raise InputError(f"--dump-ir {dump_ir}: lies inside the engine; choose another directory")
        parent = self.path.parent
        if not parent.is_dir():
            raise StorageError(f"{parent}: no such directory; create it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise StorageError(f"{parent}: not writable; choose another place or change its permissions")

    def _check_replaceable(self) -> None:
        """What exists must be an engine, with nothing beside it that replacing would lose."""
        if self.path.is_symlink() or not (self.path / MANIFEST).is_file():
            raise InputError(f"{self.path}: exists already and is not an engine directory; choose another name")
        if not self.replace:
            raise InputError(f"{self.path}: exists already; choose another directory or pass --force")
        try:
            known = {MANIFEST, *load_manifest(self.path).files}
        except InputError:
            return  # damaged, or of another version: replacing it is what mends it
        foreign = sorted(set(os.listdir(self.path)) - known)
        if foreign:
            raise InputError(f"{self.path}: {foreign[0]} is no part of the engine and would be lost; move it away")

    @contextlib.contextmanager
    def writing(self, expected_bytes: int) -> Iterator[Path]:
        """Yield the directory to write into, with what an earlier build left there.

        At the end it is gone, finished or not. After an error it stays if its journal tells of weights that were
        written; not after bad input, because what mends that changes the bytes.

        Raises:
            InputError: another build is writing to the same place.
            StorageError: less than `expected_bytes` are free.
        """
        self.partial.mkdir(exist_ok=True)
        lock = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another build is writing it; wait for it to end") from None
            if not self._is_partial(lock):
                raise InputError(f"{self.path}: another build has just ended; build again")
            self._check_ours()
            keep = False
            try:
                self._check_room(expected_bytes)
                yield self.partial
            except BaseException as error:
                begun = has_progress(self.partial) or has_progress(self.calibration)
                keep = not isinstance(error, InputError) and begun
                raise
            finally:
                if not keep and self._is_partial(lock):
                    shutil.rmtree(self.partial, ignore_errors=True)
        finally:
            os.close(lock)

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove what an earlier build left in the partial directory, but for regular files of the names in `keep`, and
        the directory of a calibration if it is named there."""
        for entry in os.scandir(self.partial):
            if entry.is_dir(follow_symlinks=False):
                if entry.name != CALIBRATION or CALIBRATION not in keep:
                    shutil.rmtree(entry.path)
            elif entry.name not in keep or not entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)

    def _check_ours(self) -> None:
        """Only what a build writes may be in the partial directory: it is emptied without asking."""
        ours = {JOURNAL, MANIFEST, f"{MANIFEST}.partial", "genai_config.json"}
        ours |= {CALIBRATION, CALIBRATION_REPORT}
        names = (name for name in os.listdir(self.partial) if name not in ours and not is_companion(name))
        foreign = sorted(name for name in names if not name.startswith(DECODER))
        if foreign:
            raise InputError(f"{self.partial}: {foreign[0]} was not written by a build; move the directory away")

    def _is_partial(self, lock: int) -> bool:
        """Whether the directory that is locked still has the partial directory's name."""
        return self.partial.exists() and os.path.samestat(os.fstat(lock), os.lstat(self.partial))

    def _check_room(self, expected_bytes: int) -> None:
        """What an earlier build left counts as room: it is gone on with, or removed."""
        free = shutil.disk_usage(self.partial).free
        left = [entry for folder in (self.partial, self.calibration) if folder.is_dir() for entry in os.scandir(folder)]
        taken = sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in left)
        if free + taken < expected_bytes:
            raise StorageError(
                f"{self.path.parent}: {expected_bytes - taken:,} bytes are needed and {free:,} are free; make room"
            )

    def finish(self, manifest: str) -> None:
        """Write the manifest, force everything to disk and move the directory to its name."""
        for name in os.listdir(self.partial):
            if name not in (JOURNAL, CALIBRATION):
                _sync(self.partial / name)
        staged = self.partial / f"{MANIFEST}.partial"
        staged.write_text(manifest, encoding="utf-8")
        _sync(staged)
        shutil.rmtree(self.calibration, ignore_errors=True)
        (self.partial / JOURNAL).unlink(missing_ok=True)  # as late as can be: from here on a kill costs all the work
        staged.rename(self.partial / MANIFEST)
        _sync(self.partial)
        if self.replace and self.path.exists():
            _exchange(self.partial, self.path)
            (self.partial / MANIFEST).unlink()  # from here on the old engine no longer looks like one
            shutil.rmtree(self.partial, ignore_errors=True)
        else:
            os.rename(self.partial, self.path)
        _sync(self.path.parent)


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
