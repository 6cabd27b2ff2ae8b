"""What identifies an engine, the checkpoint it is compared with, and the program that does so, for a report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from l4export._version import __version__
from l4export.checkpoint import open_checkpoint
from l4export.compiler.provenance import program_digest
from l4export.engine.checkpoint_manifest import (
    CHECKPOINT_MANIFEST,
    is_written_checkpoint,
    load_checkpoint_manifest,
)
from l4export.engine.manifest import MANIFEST, load_manifest
from l4export.reports.identity import EngineIdentity, Program, ReferenceIdentity
from l4export.storage.file_records import FileRecord, read_records
from l4export.storage.regular_files import regular_sha256

__all__ = ["engine_identity", "files_digest", "reference_identity", "this_program"]


def this_program() -> Program:
    """The version of l4export, and the digest by which manifests know its code."""
    return Program(__version__, program_digest())


def engine_identity(engine: Path) -> EngineIdentity:
    """What an engine, or a checkpoint that `build` wrote, says of itself. Raises as the readers of its manifest."""
    written = is_written_checkpoint(engine)
    manifest = load_checkpoint_manifest(engine) if written else load_manifest(engine)
    return EngineIdentity(
        path=str(engine),
        manifest_sha256=regular_sha256(engine / (CHECKPOINT_MANIFEST if written else MANIFEST), "build it again"),
        built_by=manifest.generator,
        target=manifest.target,
        options=manifest.options,
        source_sha256=files_digest(manifest.source),
    )


def reference_identity(engine: Path, checkpoint: Path, adapters: Sequence[Path] = ()) -> ReferenceIdentity:
    """Read the checkpoint's files that an engine was built from, or all with weights if those are not there.

    Raises:
        InputError: a checkpoint that cannot be opened, or that changes meanwhile.
        StorageError, OSError: reading failed.
    """
    manifest = load_checkpoint_manifest(engine) if is_written_checkpoint(engine) else load_manifest(engine)
    opened = open_checkpoint(checkpoint, adapters)
    files = {file.path.name: file.opened for file in opened.files}
    files |= {name: file for adapter in opened.adapters for name, file in adapter.files.items()}
    files[opened.config_file.path.name] = opened.config_file
    names = manifest.source.keys() if manifest.source.keys() <= files.keys() else files.keys()
    records = read_records({name: files[name].record for name in names})
    digest = files_digest(records)
    return ReferenceIdentity(str(checkpoint), digest, digest == files_digest(manifest.source))


def files_digest(records: Mapping[str, FileRecord]) -> str:
    """SHA-256 (hex) over the lines "digest name" of all files, in the order of the names, as `sha256sum` has them."""
    lines = "".join(f"{records[name].sha256}  {name}\n" for name in sorted(records))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
