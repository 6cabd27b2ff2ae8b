"""The engine directory's manifest: the contract between build and run. Read, checked, and held against the files."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

from l4export.engine.checkpoint_manifest import is_written_checkpoint
from l4export.engine.manifest_checks import check_manifest
from l4export.engine.manifest_reader import read_manifest
from l4export.engine.manifest_types import (
    CHECK,
    DECODER,
    FORMAT,
    FORMAT_VERSION,
    PACKED_WEIGHTS,
    PORTABLE,
    UNPACKED,
    VISION,
    CheckGraph,
    DeviceNeeds,
    EnginePart,
    Graph,
    InputSpec,
    KVLayer,
    Manifest,
    PackedWeight,
    Runtime,
    TensorSpec,
)
from l4export.errors import CheckFailed, InputError, StorageError
from l4export.storage.file_records import file_record, read_records
from l4export.storage.safetensors import parse_json_object

__all__ = [
    "CHECK",
    "DECODER",
    "FORMAT_VERSION",
    "MANIFEST",
    "PACKED_WEIGHTS",
    "PORTABLE",
    "UNPACKED",
    "VISION",
    "CheckGraph",
    "DeviceNeeds",
    "EnginePart",
    "Graph",
    "InputSpec",
    "KVLayer",
    "Manifest",
    "PackedWeight",
    "Runtime",
    "TensorSpec",
    "listed_files",
    "load_manifest",
    "verify_files",
]

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20


def load_manifest(engine: Path) -> Manifest:
    """Read an engine directory's manifest.

    Raises:
        InputError: no such directory or manifest, not JSON, another format version, a feature that this version does
            not know, a field that is missing, of a wrong type, or contradicts another.
        StorageError: reading failed.
    """
    path = engine / MANIFEST
    if not engine.is_dir():
        raise InputError(f"{engine}: no such engine directory; build one with `l4export build`")
    if not path.is_file() and is_written_checkpoint(engine):
        raise InputError(
            f"{engine}: a checkpoint for other programs and no engine; serve it with vLLM, or build an engine of it"
        )
    if not path.is_file():
        raise InputError(f"{engine}: not an engine directory (no {MANIFEST}); build one with `l4export build`")
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise InputError(f"{path}: too large for a manifest (over {_MAX_MANIFEST_BYTES >> 20} MiB); build it again")
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; check permissions") from error
    manifest = read_manifest(parse_json_object(data, str(path)), str(path))
    check_manifest(manifest, str(path))
    return manifest


def listed_files(path: Path) -> dict[str, int] | None:
    """Names and sizes in bytes of the files that a manifest lists, whatever its format version, and else unchecked.

    None where `path` is no regular file that l4export wrote.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        raw = parse_json_object(path.read_bytes(), str(path))
    except (InputError, OSError):
        return None
    version, files = raw.get("format_version"), raw.get("files")
    if raw.get("format") != FORMAT or type(version) is not int or version < 1 or not isinstance(files, dict):
        return None
    sizes = {name: record.get("bytes") for name, record in files.items() if isinstance(record, dict)}
    return {name: size for name, size in sizes.items() if type(size) is int}


def verify_files(engine: Path) -> Manifest:
    """Check every file of an engine against its manifest.

    Raises:
        CheckFailed: a file is missing, has another size, or another digest; all such files are named.
        InputError: as `load_manifest`.
    """
    manifest = load_manifest(engine)
    faults = {name: _size_fault(engine / name, record.bytes) for name, record in manifest.files.items()}
    reads = {name: partial(file_record, engine / name) for name, fault in faults.items() if fault is None}
    for name, record in read_records(reads).items():
        if record != manifest.files[name]:
            faults[name] = f"{name} has been changed"
    if found := [fault for fault in faults.values() if fault]:
        raise CheckFailed(f"{engine}: {'; '.join(found)}; build or copy the engine again")
    return manifest


def _size_fault(path: Path, expected: int) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    return None if size == expected else f"{path.name} has {size} bytes, not {expected}"
