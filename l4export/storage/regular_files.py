"""Opens files of which nobody knows what they are: regular ones only, without ever waiting.

Links are followed: the cache of a model hub consists of them. What they lead to must be a regular file all the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

from l4export.errors import InputError, StorageError

__all__ = ["open_descriptor", "open_regular", "read_small", "regular_sha256", "regular_size"]


def regular_size(path: Path) -> int | None:
    """Bytes of a regular file, or of the one that a link leads to; None for anything else and for what is not there.

    Raises:
        StorageError: it cannot be looked at.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def open_descriptor(path: Path, remedy: str) -> int:
    """A descriptor of a regular file, opened for reading. Devices are not even opened, and pipes never waited for.

    Args:
        path: The file, or a link to it.
        remedy: What to do about anything else, such as "download it again".

    Raises:
        InputError: not there, or not a regular file.
        StorageError: it cannot be opened.
    """
    if regular_size(path) is None:
        what = "not a regular file" if os.path.exists(path) else "no such file"
        raise InputError(f"{path}: {what}; {remedy}")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # exchanged a moment ago
        os.close(descriptor)
        raise InputError(f"{path}: not a regular file; {remedy}")
    return descriptor


def open_regular(path: Path, remedy: str) -> io.BufferedReader:
    """A regular file as a file object; arguments and errors are those of `open_descriptor`."""
    return os.fdopen(open_descriptor(path, remedy), "rb")


def read_small(path: Path, limit: int, remedy: str) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; `path` and `remedy` as in `open_descriptor`.

    Raises:
        InputError: not there, not a regular file, or larger.
        StorageError: reading failed.
    """
    with open_regular(path, remedy) as file:
        try:
            data = file.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
        except OSError as error:
            raise _unreadable(path, error) from None
    if data is None or len(data) > limit:
        raise InputError(f"{path}: more than {limit} bytes; {remedy}")
    return data


def regular_sha256(path: Path, remedy: str) -> str:
    """The SHA-256 of a regular file in hexadecimal digits, read in a stream. Raises as `open_descriptor`."""
    with open_regular(path, remedy) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk")
