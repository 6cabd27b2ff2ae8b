"""What a rebuild can take over from the engine that it replaces.

Everything that decides an engine's bytes is in its manifest: the program, the options, the digests of the sources. If
all of it is the same, the engine is up to date. If only options of the graph differ, its data files can be taken over.
In both cases the files themselves are read and compared with their digests first.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from l4export.compiler.compile import CompiledGraph
from l4export.engine.checkpoint_manifest import CheckpointManifest
from l4export.engine.manifest import MANIFEST, Manifest, load_manifest
from l4export.errors import CheckFailed, InputError
from l4export.storage.file_records import FileRecord, file_record, verify_records
from l4export.weights.evaluation import is_constant
from l4export.weights.placement import DataFile

__all__ = ["is_up_to_date", "may_have_weights", "previous_engine", "reusable_weights", "take_over"]

AnyManifest = TypeVar("AnyManifest", Manifest, CheckpointManifest)


def previous_engine(path: Path) -> Manifest | None:
    """The manifest of the existing engine; None if there is no engine, or its manifest cannot be read."""
    try:
        return load_manifest(path) if (path / MANIFEST).is_file() else None
    except InputError:
        return None


def may_have_weights(old: Manifest, draft: Manifest, files: Sequence[DataFile]) -> bool:
    """Whether the engine's weights may be those of `draft`, judged without reading the sources."""
    return _of_weights(old) == _of_weights(draft) and all(
        file.name in old.files and old.files[file.name].bytes == file.size for file in files
    )


def is_up_to_date(engine: Path, old: AnyManifest, draft: AnyManifest, copied: Mapping[str, FileRecord]) -> bool:
    """Whether the engine, or written checkpoint, is what a build would write: `draft` is its manifest without files.

    `copied` are the files that are copied from the source as they are.
    """
    same = dataclasses.replace(old, files={}).to_json() == draft.to_json()
    if not same or {name: old.files.get(name) for name in copied} != copied:
        return False
    try:
        verify_records(engine, old.files, "build it again")
    except CheckFailed:
        return False
    return True


def reusable_weights(
    engine: Path, old: Manifest, draft: Manifest, graphs: Sequence[CompiledGraph]
) -> dict[str, FileRecord] | None:
    """The records of the engine's data files, if they hold what is planned, byte for byte; else None."""
    files = [file for graph in graphs for file in graph.files]
    if old.source != draft.source or not may_have_weights(old, draft, files):
        return None
    data = [file.name for file in files]
    names = [*(graph.file for graph in graphs), *data]
    if any(not (engine / name).is_file() or file_record(engine / name) != old.files.get(name) for name in names):
        return None
    planned = {
        (str(value.name), file.name, placed.offset, placed.recipe.nbytes, placed.recipe.dtype, placed.recipe.dims)
        for file in files
        for placed in file.placements
        for value in placed.values
    }
    placed = set[tuple[object, ...]]().union(*(_placed(engine / graph.file) for graph in graphs))
    if placed != planned or not all(_has_constants(engine, file) for file in files):
        return None
    return {name: old.files[name] for name in data}


def take_over(engine: Path, target: Path, names: Sequence[str]) -> None:
    """Put the engine's files into `target` too: as hard links, or as copies where links are impossible."""
    for name in names:
        try:
            os.link(engine / name, target / name)
        except OSError:
            shutil.copyfile(engine / name, target / name)


def _of_weights(manifest: Manifest) -> tuple[object, ...]:
    """What decides the bytes of the data files, except the sources."""
    precision = manifest.precision["weights"], manifest.precision["quant"]
    return manifest.generator, manifest.target, manifest.model, precision, manifest.options["weights"]


def _has_constants(engine: Path, file: DataFile) -> bool:
    """Whether tables that were computed for the graph, such as rotations, have the values that are planned."""
    with open(engine / file.name, "rb") as handle:
        for placed in file.placements:
            if is_constant(placed.recipe):
                handle.seek(placed.offset)
                if handle.read(placed.recipe.nbytes) != placed.recipe.tobytes():
                    return False
    return True


def _placed(graph: Path) -> set[tuple[object, ...]]:
    return {
        (str(value.name), str(tensor.location), tensor.offset, tensor.length, tensor.dtype, tuple(tensor.shape.numpy()))
        for value in ir.load(graph).graph.initializers.values()
        if isinstance(tensor := value.const_value, ir.ExternalTensor)
    }
