"""The manifest of a checkpoint that l4export wrote for other programs: what it was made from, and what it consists of.

Loaders of checkpoints read neither it nor the folder in which it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4export.engine.manifest_fields import Fields
from l4export.engine.manifest_reader import read_model, read_options, read_record, read_vision
from l4export.errors import InputError
from l4export.model.config import ModelConfig
from l4export.model.config_fields import show
from l4export.model.vision_config import VisionConfig
from l4export.storage.file_records import FileRecord, verify_records
from l4export.storage.regular_files import read_small, regular_size
from l4export.storage.safetensors import parse_json_object

__all__ = [
    "CHECKPOINT_FORMAT",
    "CHECKPOINT_FORMAT_VERSION",
    "CHECKPOINT_MANIFEST",
    "OWN_FOLDER",
    "CheckpointManifest",
    "is_written_checkpoint",
    "load_checkpoint_manifest",
    "verify_checkpoint",
]

CHECKPOINT_FORMAT = "l4export.checkpoint"
CHECKPOINT_FORMAT_VERSION = 1

OWN_FOLDER = "l4export"
"""The folder of a written checkpoint with what is of no interest to its loaders."""

CHECKPOINT_MANIFEST = f"{OWN_FOLDER}/manifest.json"
"""Where the manifest lies in a written checkpoint."""

_MOST_BYTES = 64 << 20
_AGAIN = "write the checkpoint again"


@dataclass(frozen=True)
class CheckpointManifest:
    """What a written checkpoint is. No timestamps: the same inputs give the same bytes.

    Attributes:
        generator: The program that wrote it.
        target: The value of `--target` that made it.
        model: The text model.
        options: Of the build: `weights` decide the bytes of the tensors.
        source: The files that it was made from, by name.
        files: Its own files, all but the manifest, by their paths in the directory.
        vision: The vision tower; None where there is none.
    """

    generator: str
    target: str
    model: ModelConfig
    options: dict[str, Any]
    source: dict[str, FileRecord]
    files: dict[str, FileRecord]
    vision: VisionConfig | None = None

    def to_json(self) -> str:
        """The manifest file's text; the same manifest gives the same bytes."""
        raw = {
            "format": CHECKPOINT_FORMAT,
            "format_version": CHECKPOINT_FORMAT_VERSION,
            "generator": self.generator,
            "target": self.target,
            "model": self.model.to_dict(),
            **({"vision": self.vision.to_dict()} if self.vision else {}),
            "options": self.options,
            "source": self.source,
            "files": self.files,
        }
        return json.dumps(raw, indent=1, ensure_ascii=False, default=vars) + "\n"


def is_written_checkpoint(path: Path) -> bool:
    """Whether a directory has the manifest of a written checkpoint. It may still be one that cannot be read."""
    try:
        return regular_size(path / CHECKPOINT_MANIFEST) is not None
    except ValueError:  # a path with a zero byte
        return False


def load_checkpoint_manifest(path: Path) -> CheckpointManifest:
    """Read the manifest of a written checkpoint.

    Args:
        path: The checkpoint's directory.

    Raises:
        InputError: no such directory or manifest, not JSON, another format version, a field that is missing or of a
            wrong type.
        StorageError: reading failed.
    """
    file = path / CHECKPOINT_MANIFEST
    if not is_written_checkpoint(path):
        raise InputError(f"{path}: not a checkpoint that l4export wrote (no {CHECKPOINT_MANIFEST})")
    raw = parse_json_object(read_small(file, _MOST_BYTES, _AGAIN), str(file))
    _check_format(raw, file)
    fields = Fields(raw, "", str(file), _AGAIN)
    return CheckpointManifest(
        generator=fields.text("generator"),
        target=fields.text("target"),
        model=read_model(fields),
        options=read_options(fields, ("weights",)),
        source={name: read_record(record) for name, record in fields.child("source").files().items()},
        files={_inside(name, file): read_record(record) for name, record in fields.child("files").named().items()},
        vision=read_vision(fields),
    )


def verify_checkpoint(path: Path) -> CheckpointManifest:
    """Check every file of a written checkpoint against its manifest.

    Raises:
        CheckFailed: a file is missing, has another size, or another digest; all such files are named.
        InputError: as `load_checkpoint_manifest`.
    """
    manifest = load_checkpoint_manifest(path)
    verify_records(path, manifest.files, "write or copy the checkpoint again")
    return manifest


def _check_format(raw: Mapping[str, Any], file: Path) -> None:
    if raw.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{file}: not the manifest of a checkpoint; {_AGAIN}")
    version = raw.get("format_version")
    if version != CHECKPOINT_FORMAT_VERSION or type(version) is not int:
        raise InputError(
            f"{file}: format_version is {show(version)}, and this l4export reads {CHECKPOINT_FORMAT_VERSION}; "
            f"{_AGAIN}, or use the l4export that wrote it"
        )


def _inside(name: str, file: Path) -> str:
    """The path of a file, which lies in the directory or in a folder of it; others are refused."""
    parts = name.split("/")
    if len(parts) > 2 or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"{file}: files has the path {show(name)}, which leads outside the checkpoint; {_AGAIN}")
    return name
