"""The files of sample checkpoints: one, or shards and their index."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from l4export.errors import StorageError
from l4export.storage.safetensors_writer import Entry, safetensors_header, write_safetensors

__all__ = ["require_holes", "write_files"]

_PROBE_BYTES = 64 * 2**20  # large enough to tell a hole from a block, small enough to be no harm where it is filled


def write_files(
    path: Path,
    entries: Sequence[Entry],
    contents: Iterator[Iterable[np.ndarray] | None],
    limit: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write tensors to the directory `path`: one file, or if they exceed `limit` bytes, shards of at most so many.

    Args:
        path: The directory.
        entries: The tensors, in order.
        contents: The bytes of each, in pieces; None: it is left as a hole.
        limit: Bytes of a shard; a larger tensor has one of its own.
        progress: Told bytes that are done, and all.
    """
    _, sizes = safetensors_header(entries)
    total, done = sum(sizes.values()), 0

    def chunks(_: str) -> Iterator[np.ndarray] | None:
        pieces = next(contents)
        return None if pieces is None else counted(pieces)

    def counted(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for piece in pieces:
            yield piece
            done += piece.nbytes
            if progress is not None:
                progress(done, total)

    groups = _shards(entries, sizes, limit)
    names = ["model.safetensors"]
    if len(groups) > 1:
        names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
        weight_map = {name: file for file, group in zip(names, groups, strict=True) for name, _, _ in group}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    for file, group in zip(names, groups, strict=True):
        write_safetensors(path / file, group, chunks)


def _shards(entries: Iterable[Entry], sizes: dict[str, int], limit: int) -> list[list[Entry]]:
    """Tensors cut into consecutive groups of at most `limit` bytes; a larger one is a group of its own."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + sizes[entry[0]] > limit:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += sizes[entry[0]]
    return groups


def require_holes(path: Path, out: Path) -> None:
    """`StorageError` where a file grown by `truncate` takes blocks: hundreds of gigabytes would fill the disk."""
    probe = path / "probe"
    with probe.open("xb") as handle:
        handle.truncate(_PROBE_BYTES)
        os.fsync(handle.fileno())
        taken = _taken_bytes(handle.fileno())
    probe.unlink()
    if taken > _PROBE_BYTES // 2:
        raise StorageError(f"{out}: this file system does not keep sparse files, which size 'full' needs; use another")


def _taken_bytes(descriptor: int) -> int:
    """Bytes of disk that a file takes."""
    return os.fstat(descriptor).st_blocks * 512
