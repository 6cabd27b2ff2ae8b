"""Small files of a checkpoint or an adapter, of bounded size."""

from __future__ import annotations

from pathlib import Path

from l4export.errors import InputError
from l4export.storage.opened_file import OpenedFile

__all__ = ["open_small", "read_small"]

_MAX_JSON = 64 * 2**20


def open_small(path: Path) -> OpenedFile:
    """A JSON file, opened. Raises `InputError` unless it is a regular one of at most 64 MiB."""
    if not path.is_file() or (file := OpenedFile(path)).size > _MAX_JSON:
        raise InputError(f"{path}: not a regular file of at most {_MAX_JSON // 2**20} MiB; download it again")
    return file


def read_small(path: Path) -> bytes:
    """The bytes of such a file; raises as `open_small`."""
    return open_small(path).read()
