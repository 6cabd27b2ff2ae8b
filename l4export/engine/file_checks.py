"""An engine's files against its manifest, before any of them is used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from l4export.engine.manifest_types import Graph, Manifest
from l4export.errors import InputError
from l4export.storage.file_records import FileRecord
from l4export.storage.regular_files import read_small, regular_sha256, regular_size

__all__ = ["check_files", "check_records", "read_graph"]

_DIGEST_LIMIT = 64 << 20
_GRAPH_LIMIT = 16 << 20
"""Largest file of a graph. Without weights, that of 48 layers and 128 experts has 1.2 MB."""
_REMEDY = "build or copy the engine again"


def check_files(engine: Path, manifest: Manifest) -> None:
    """Graphs have at most 16 MiB, and for the rest as `check_records`.

    Raises:
        InputError: a file is missing, of another kind or size, or has been changed.
        StorageError: reading failed.
    """
    for graph in manifest.graphs.values():
        for name in (graph.file, *(part.graph for part in graph.parts)):
            if (size := manifest.files[name].bytes) > _GRAPH_LIMIT:
                raise InputError(f"{engine / name}: {size} bytes, and a graph has at most {_GRAPH_LIMIT}; {_REMEDY}")
    check_records(engine, manifest.files, _REMEDY)


def check_records(directory: Path, files: Mapping[str, FileRecord], remedy: str) -> None:
    """All are regular files of the right size. Those of up to 64 MiB, the graphs and the tokenizer among them, are
    those that were built.

    Raises:
        InputError: one is missing, of another kind or size, or has been changed; `remedy` is what to do.
        StorageError: reading failed.
    """
    for name, record in files.items():
        size = regular_size(directory / name)
        if size is None:
            raise InputError(f"{directory}: {name} is missing or not a regular file; {remedy}")
        if size != record.bytes:
            raise InputError(f"{directory / name}: {size} bytes instead of {record.bytes}; {remedy}")
    for name, record in files.items():
        if record.bytes <= _DIGEST_LIMIT and regular_sha256(directory / name, remedy) != record.sha256:
            raise _changed(directory, name, remedy)


def read_graph(engine: Path, manifest: Manifest, graph: Graph) -> bytes:
    """One of the manifest's graphs as it was built, once all files have been checked.

    Raises:
        InputError: as `check_files`.
        StorageError: reading failed.
    """
    check_files(engine, manifest)
    name = graph.file
    record = manifest.files[name]
    data = read_small(engine / name, record.bytes, _REMEDY)
    if hashlib.sha256(data).hexdigest() != record.sha256:  # exchanged a moment ago
        raise _changed(engine, name, _REMEDY)
    return data


def _changed(directory: Path, name: str, remedy: str) -> InputError:
    return InputError(f"{directory}: {name} has been changed; {remedy}")
