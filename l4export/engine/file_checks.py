"""An engine's files against its manifest, before any of them is used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from l4export.engine.manifest_types import Graph, Manifest
from l4export.errors import InputError
from l4export.storage.regular_files import read_small, regular_sha256, regular_size

__all__ = ["check_files", "read_graph"]

_DIGEST_LIMIT = 64 << 20
_GRAPH_LIMIT = 16 << 20
"""Largest file of a graph. Without weights, that of 48 layers and 128 experts has 1.2 MB."""
_REMEDY = "build or copy the engine again"


def check_files(engine: Path, manifest: Manifest) -> None:
    """All are regular files of the right size, and graphs of at most 16 MiB. Those of up to 64 MiB, the graphs and the
    tokenizer among them, are those that were built.

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
    for graph in manifest.graphs.values():
        for name in (graph.file, *(part.graph for part in graph.parts)):
            if (size := manifest.files[name].bytes) > _GRAPH_LIMIT:
                raise InputError(f"{engine / name}: {size} bytes, and a graph has at most {_GRAPH_LIMIT}; {_REMEDY}")
    for name, record in manifest.files.items():
        if record.bytes <= _DIGEST_LIMIT and regular_sha256(engine / name, _REMEDY) != record.sha256:
            raise _changed(engine, name)


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
        raise _changed(engine, name)
    return data


def _changed(engine: Path, name: str) -> InputError:
    return InputError(f"{engine}: {name} has been changed; {_REMEDY}")
