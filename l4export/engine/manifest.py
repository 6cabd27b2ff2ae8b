"""The engine directory's manifest: the contract between build and run. Read, checked, and held against the files."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from pathlib import Path

from l4export.engine.checkpoint_manifest import is_written_checkpoint
from l4export.engine.manifest_checks import check_manifest
from l4export.engine.manifest_reader import read_manifest
from l4export.engine.manifest_types import (
    CHECK,
    CPU_KERNELS,
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
from l4export.errors import InputError, StorageError
from l4export.storage.file_records import verify_records
from l4export.storage.safetensors import parse_json_object

__all__ = [
    "CHECK",
    "CPU_KERNELS",
    "DECODER",
    "FORMAT",
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
    if not path.is_file() and is_written_checkpoint(engine):
        raise InputError(
            f"{engine}: is a checkpoint, which vLLM, SGLang and transformers run, not l4export; build an engine "
            "from the checkpoint that it was made from"
        )
    if not engine.is_dir():
        raise InputError(f"{engine}: no such engine directory; build one with `l4export build`")
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
    return dataclasses.replace(manifest, sha256=hashlib.sha256(data).hexdigest())


def listed_files(path: Path, of_format: str = FORMAT) -> dict[str, int] | None:
    """Names and sizes in bytes of the files that a manifest lists, whatever its format version, and else unchecked.

    None where `path` is no regular file that l4export wrote, in that format.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        raw = parse_json_object(path.read_bytes(), str(path))
    except (InputError, OSError):
        return None
    version, files = raw.get("format_version"), raw.get("files")
    if raw.get("format") != of_format or type(version) is not int or version < 1 or not isinstance(files, dict):
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
    verify_records(engine, manifest.files, "build or copy the engine again")
    return manifest
