"""An engine's files against its manifest, before any of them is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from l4export.engine.manifest_types import Manifest
from l4export.errors import InputError
from l4export.storage.file_records import FileRecord
from l4export.storage.regular_files import read_small, regular_sha256, regular_size

__all__ = ["check_files", "read_file"]

_DIGEST_LIMIT = 64 << 20
_REMEDY = "build or copy the engine again"


def check_files(engine: Path, manifest: Manifest) -> None:
    """All are regular files of the right size; those of up to 64 MiB, the graph and the tokenizer among them, are those
    that were built.

    Raises:
        InputError: one is missing, of another kind or size, or has been changed.
        StorageError: reading failed.
    """
    for name, record in manifest.files.items():
        size = regular_size(engine / name)
        if size is None:
            raise InputError(f"{engine}: {name} is missing or not a regular file; {_REMEDY}")
        if size != record.bytes:
            raise InputError(f"{engine / name}: {size} bytes instead of {record.bytes}; {_REMEDY}")
    for name, record in manifest.files.items():
        if record.bytes <= _DIGEST_LIMIT:
            _compare(regular_sha256(engine / name, _REMEDY), engine, name, record)


def read_file(engine: Path, manifest: Manifest, name: str) -> bytes:
    """The bytes of one of the engine's files, such as a graph, which has at most 64 MiB and is as it was built.

    Raises:
        InputError: it is missing, larger, of another kind or size, or has been changed.
        StorageError: reading failed.
    """
    record = manifest.files[name]
    if record.bytes > _DIGEST_LIMIT:
        raise InputError(f"{engine / name}: {record.bytes} bytes, and at most {_DIGEST_LIMIT} are read; {_REMEDY}")
    data = read_small(engine / name, record.bytes, _REMEDY)
    _compare(hashlib.sha256(data).hexdigest(), engine, name, record)
    return data


def _compare(sha256: str, engine: Path, name: str, record: FileRecord) -> None:
    if sha256 != record.sha256:
        raise InputError(f"{engine}: {name} has been changed; {_REMEDY}")
