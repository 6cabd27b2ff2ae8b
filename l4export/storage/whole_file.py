"""Small files that appear whole or not at all, and replace only what they may."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from l4export.errors import InputError, StorageError

__all__ = ["check_replaceable", "replace_file"]

_HEAD_BYTES = 256


def check_replaceable(path: Path, mark: str) -> None:
    """Check that a path leads to nothing, to an empty file, or to one that has `mark` in its first 256 bytes.

    Raises:
        InputError: it leads to a directory, a device or another program's file.
        StorageError: its directory is missing, or it cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            raise StorageError(f"{path}: there is no such directory; make it") from None
        return
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a directory; name a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is no regular file; name one")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check permissions") from error
    if head and mark.encode() not in head:
        raise InputError(f"{path}: exists already and is not a report, so it would be lost; choose another name")


def replace_file(path: Path, text: str) -> None:
    """Write a text as UTF-8 to a file, in one step: a reader finds what was there, or all of it.

    Links are followed. A file that is replaced keeps its permissions.

    Raises:
        StorageError: writing failed; what was there is there still.
    """
    target = Path(os.path.realpath(path))
    staged = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with staged.open("x", encoding="utf-8", errors="backslashreplace") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, target)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check the directory and the disk") from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
