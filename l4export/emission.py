"""Streaming emission: recipes -> data files, a bounded number of bytes in memory whatever the model's size.

Offsets are planned first, from dtypes and shapes alone; then workers evaluate blocks of recipes and write each to its
own place. The bytes do not depend on the number of workers or their order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from l4export.errors import InputError
from l4export.recipes import Recipe, Region, as_recipe, blocks

__all__ = ["DataFile", "Placement", "emit", "plan"]

_ALIGNMENT = 4096
"""Offsets are multiples of a page, so that a runtime can map a tensor where it lies."""

_FILE_BYTES = 4 << 30
"""A data file is closed before it grows beyond this; a larger tensor has a file of its own."""

_INLINE_BYTES = 1024
"""Smaller tensors stay in the graph file."""

_BLOCK_BYTES = 32 << 20
"""Output bytes that one worker has in hand at a time; the recipe's own temporaries are of the same order."""


@dataclass(frozen=True)
class Placement:
    """Where one weight goes: `value`'s recipe, written at `offset` of its data file."""

    value: ir.Value
    recipe: Recipe
    offset: int


@dataclass(frozen=True)
class DataFile:
    """One data file: its name, its weights in file order, and its size in bytes."""

    name: str
    placements: tuple[Placement, ...]
    size: int


def plan(model: ir.Model, stem: str) -> list[DataFile]:
    """Give every weight of more than 1 KiB a file and an offset, in the order of the graph's initializers.

    Files are named `{stem}-00001-of-00003.data`. Reads no weights.
    """
    files: list[tuple[list[Placement], int]] = []
    placements: list[Placement] = []
    size = 0
    for value in model.graph.initializers.values():
        if value.const_value is None or value.const_value.nbytes <= _INLINE_BYTES:
            continue
        recipe = as_recipe(value.const_value)
        offset = -(-size // _ALIGNMENT) * _ALIGNMENT
        if placements and offset + recipe.nbytes > _FILE_BYTES:
            files.append((placements, size))
            placements, offset = [], 0
        placements.append(Placement(value, recipe, offset))
        size = offset + recipe.nbytes
    if placements:
        files.append((placements, size))
    return [
        DataFile(f"{stem}-{i:05d}-of-{len(files):05d}.data", tuple(placed), size)
        for i, (placed, size) in enumerate(files, start=1)
    ]


def emit(
    model: ir.Model,
    directory: Path,
    stem: str,
    jobs: int,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Write `{stem}.onnx` and its data files into `directory`; returns the names of the files.

    `jobs` workers each hold one block at a time. `on_progress(n)` is told of every n bytes written. The model's weights
    are references into the data files afterwards.

    Raises:
        InputError: when a weight cannot be converted, by the weight's name.
        OSError: when writing fails (a full disk, no permission).
    """
    files = plan(model, stem)
    for file in files:
        _write_file(directory / file.name, file, jobs, on_progress)
    for file in files:
        for placed in file.placements:
            placed.value.const_value = ir.ExternalTensor(
                file.name,
                placed.offset,
                placed.recipe.nbytes,
                placed.recipe.dtype,
                shape=placed.recipe.shape,
                name=str(placed.value.name),
                base_dir=directory,
            )
    graph_name = f"{stem}.onnx"
    (directory / graph_name).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return [graph_name, *(file.name for file in files)]


def _write_file(path: Path, file: DataFile, jobs: int, on_progress: Callable[[int], None] | None) -> None:
    with open(path, "wb") as handle:
        handle.truncate(file.size)
        descriptor = handle.fileno()

        def write(placed: Placement, region: Region, offset: int) -> int:
            data = _evaluate(placed, region)
            _write_all(descriptor, data, offset)
            return len(data)

        with ThreadPoolExecutor(max_workers=jobs) as workers:
            pending: deque[Future[int]] = deque()
            try:
                for placed, region, offset in _blocks(file):
                    pending.append(workers.submit(write, placed, region, offset))
                    if len(pending) > 2 * jobs:
                        _finish(pending.popleft(), on_progress)
                while pending:
                    _finish(pending.popleft(), on_progress)
            finally:
                for left in pending:
                    left.cancel()
        os.fsync(descriptor)


def _finish(block: Future[int], on_progress: Callable[[int], None] | None) -> None:
    written = block.result()
    if on_progress:
        on_progress(written)


def _blocks(file: DataFile) -> Iterator[tuple[Placement, Region, int]]:
    """Every block of the file with its absolute offset."""
    for placed in file.placements:
        offset = placed.offset
        for region in blocks(placed.recipe.dims, placed.recipe.dtype.itemsize, _BLOCK_BYTES):
            yield placed, region, offset
            offset += int(np.prod([cut.stop - cut.start for cut in region]) * placed.recipe.dtype.itemsize)


def _evaluate(placed: Placement, region: Region) -> memoryview:
    try:
        return np.ascontiguousarray(placed.recipe.read(region)).reshape(-1).view(np.uint8).data
    except ValueError as error:
        raise InputError(f"{placed.value.name}: {error}; choose another --dtype") from error


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
