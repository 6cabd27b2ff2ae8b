"""Streaming emission: recipes -> data files, within a memory budget that does not depend on the model's size.

The plan (`l4export.weights.placement`) says where everything goes; workers evaluate blocks and write each output's part
to its own place. They also hash: what they read, just before (`l4export.storage.running_digest`), and what has been
written, just after. The bytes do not depend on the number of workers, their order, the budget, or interruptions.

Memory: while a block is being computed it costs at most about three times its larger side, which is the bytes it reads
or the bytes it writes: a copy of the source (integer quantisation needs none), temporaries, and the result. So with
`jobs` workers and a budget of B bytes a block's larger side is at most B / (3 jobs), and never more than 8 MiB, beyond
which nothing becomes faster (blocks of 32 MiB took as long in float32 and longer in int4, and more memory).
The budget does not count the interpreter and its libraries, about 100 MB, and the mapped part of the source that is
being read, up to 32 MiB for each worker, which are pages of the kernel's cache.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from l4export.errors import InputError
from l4export.storage.file_records import FileRecord
from l4export.storage.journal import Journal
from l4export.storage.worker_threads import worker_threads
from l4export.storage.written_digest import WrittenDigest
from l4export.weights.evaluation import side_bytes
from l4export.weights.order import UnitQueue
from l4export.weights.placement import INLINE_BYTES, DataFile, Unit, place_weights, row_cells, subregions, units
from l4export.weights.recipes import Recipe, whole

__all__ = ["DEFAULT_BUDGET", "block_bytes", "check_budget", "emit", "emit_data", "emit_graph", "refer_to_data"]

DEFAULT_BUDGET = 512 << 20
"""Bytes of memory for weights on their way."""

_BLOCK_BYTES = 8 << 20
"""A block's larger side never exceeds this, or one row where that is more."""

_COST = 3
"""Bytes of memory for each byte of a block's larger side."""

_PIECE_BYTES = 1 << 20
"""Bytes read at a time when data files are read again to resume."""


def emit(
    model: ir.Model,
    directory: Path,
    stem: str,
    jobs: int,
    on_progress: Callable[[int], None] | None = None,
    budget: int = DEFAULT_BUDGET,
) -> dict[str, FileRecord | None]:
    """Write `{stem}.onnx` and its data files into `directory`; returns the files with what is known of them."""
    files = place_weights(model, stem)
    records = emit_data(files, directory, jobs, budget, on_progress=on_progress)
    return {emit_graph(model, files, directory, stem): None, **records}


def emit_data(
    files: Sequence[DataFile],
    directory: Path,
    jobs: int,
    budget: int = DEFAULT_BUDGET,
    journal: Journal | None = None,
    on_resume: Callable[[int], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
    given_up: threading.Event | None = None,
) -> dict[str, FileRecord]:
    """Write the data files; returns the size and digest of each.

    Units that `journal` lists are read back, and written again only if their bytes are not what it says. `on_resume(n)`
    is called once, with the number of bytes that need no writing, before the first byte is written. `on_progress(n)` is
    called for every n bytes that are written, from any thread, by one thread at a time. `given_up` is set at an error,
    or Ctrl-C, so that workers that are hashing end.

    Raises:
        InputError: when a weight cannot be converted, by the weight's name; a budget that is too small.
        OSError: when reading back or writing fails (a full disk, no permission).
    """
    check_budget(files, jobs, budget)
    work, given_up = units(files), given_up or threading.Event()
    with contextlib.ExitStack() as stack:
        descriptors = {file.name: stack.enter_context(_opened(directory / file.name, file.size)) for file in files}
        digests = {file.name: _digest(file, descriptors[file.name], work, given_up) for file in files}
        writer = _Writer(descriptors, digests, block_bytes(jobs, budget), journal, on_progress)
        workers = stack.enter_context(worker_threads(jobs, given_up))
        intact: list[Unit] = []
        if journal and journal.entries:
            _clear_gaps(files, descriptors)
            intact = _intact(work, journal.entries, writer, workers)
        if on_resume:
            on_resume(sum(unit.nbytes for unit in intact))
        for unit in intact:
            writer.note(unit)
        done = {unit.number for unit in intact}
        missing = [unit for unit in work if unit.number not in done]
        queue = UnitQueue(missing)
        tasks: list[Future[None]] = [workers.submit(lambda: writer.write(queue.take())) for _ in missing]
        tasks += [workers.submit(digest.catch_up) for digest in digests.values()]
        _finish(tasks)
        return {name: digest.record() for name, digest in digests.items()}


def _digest(file: DataFile, descriptor: int, work: Sequence[Unit], given_up: threading.Event) -> WrittenDigest:
    starts = [part.offset for unit in work for part in unit.parts if part.file == file.name]
    return WrittenDigest(descriptor, file.size, starts, given_up)


def emit_graph(model: ir.Model, files: Sequence[DataFile], directory: Path, stem: str) -> str:
    """Write `{stem}.onnx`, which refers to the data files, and return its name. So does `model` afterwards.

    Raises:
        InputError: when a small weight, which the graph file holds, cannot be converted, by its name.
        OSError: when writing fails.
    """
    refer_to_data(model, files, directory)
    name = f"{stem}.onnx"
    (directory / name).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return name


def refer_to_data(model: ir.Model, files: Sequence[DataFile], directory: Path) -> None:
    """Replace the recipes of `model`: the large ones by their places in the data files, small ones by their values.

    Raises:
        InputError: when a small weight cannot be converted, by its name.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, Recipe) and tensor.nbytes <= INLINE_BYTES:
            with _named(str(value.name)):
                value.const_value = ir.Tensor(
                    np.asarray(tensor.read(whole(tensor.dims)), order="C"), dtype=tensor.dtype, name=value.name
                )
    for file in files:
        for placed in file.placements:
            recipe = placed.recipe
            for value in placed.values:
                value.const_value = ir.ExternalTensor(
                    file.name,
                    placed.offset,
                    recipe.nbytes,
                    recipe.dtype,
                    shape=value.shape or recipe.shape,  # readers of one place may see it in different shapes
                    name=str(value.name),
                    base_dir=directory,
                )


def block_bytes(jobs: int, budget: int) -> int:
    """Bytes of a block's larger side, so that `jobs` blocks fit the budget."""
    return min(_BLOCK_BYTES, budget // (_COST * jobs))


def check_budget(files: Sequence[DataFile], jobs: int, budget: int) -> None:
    """Raise `InputError` unless every worker can hold one row of any weight, and say what would do."""
    least, name = 0, ""
    for unit in units(files):
        lead = unit.evaluation.lead
        row = min(row_cells(unit.evaluation), lead[-1]) if lead else 1
        if (side := -(-side_bytes(unit.evaluation) * row // math.prod(lead))) > least:
            least, name = side, unit.name
    if (needed := _COST * jobs * least) > budget:
        raise InputError(
            f"--memory-budget {budget:,}: {jobs} jobs need at least {needed:,} bytes (a row of {name} for each); "
            "raise it or lower --jobs"
        )


class _Writer:
    """The work of the workers, each on a unit of its own."""

    def __init__(
        self,
        descriptors: Mapping[str, int],
        digests: Mapping[str, WrittenDigest],
        limit: int,
        journal: Journal | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._descriptors, self._digests, self._limit = descriptors, digests, limit
        self._journal, self._on_progress = journal, on_progress
        self._lock = threading.Lock()

    def write(self, unit: Unit) -> None:
        """Evaluate a unit block by block, write every output's part, note it in the journal, and hash what can be."""
        offsets = [part.offset for part in unit.parts]
        checksums = [0] * len(unit.parts)
        cells = max(1, self._limit * math.prod(unit.evaluation.lead) // side_bytes(unit.evaluation))
        for region in subregions(unit.evaluation, unit.region, cells):
            with _named(unit.name):
                outputs = unit.evaluation.evaluate(region)
            written = 0
            for i, part in enumerate(unit.parts):
                data = _bytes(outputs[part.output], unit.evaluation.outputs[part.output].dtype)
                _write_all(self._descriptors[part.file], data, offsets[i])
                checksums[i] = zlib.crc32(data, checksums[i])
                offsets[i] += len(data)
                written += len(data)
            del outputs, data  # or they would stay in memory during the next block
            if self._on_progress:
                with self._lock:
                    self._on_progress(written)
        ends = [part.offset + part.nbytes for part in unit.parts]
        assert offsets == ends, f"{unit.name}: evaluated to other sizes than planned"
        if self._journal:
            self._journal.add(unit.number, tuple(checksums))
        self.note(unit)
        for name in {part.file for part in unit.parts}:
            self._digests[name].catch_up()

    def note(self, unit: Unit) -> None:
        """Tell the digests of its files that a unit has been written."""
        for part in unit.parts:
            self._digests[part.file].written(part.offset)

    def is_intact(self, unit: Unit, entries: Mapping[int, tuple[int, ...]]) -> bool:
        """Whether the files hold what the journal says of a unit."""
        found = []
        for part in unit.parts:
            checksum = 0
            for data in _read_back(self._descriptors[part.file], part.offset, part.offset + part.nbytes):
                checksum = zlib.crc32(data, checksum)
            found.append(checksum)
        return tuple(found) == entries[unit.number]


@contextlib.contextmanager
def _opened(path: Path, size: int) -> Iterator[int]:
    """A data file of its final size; what is not written of it reads as zeros."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _clear_gaps(files: Sequence[DataFile], descriptors: Mapping[str, int]) -> None:
    """Zeros between the weights, which no unit covers, whatever happened to the files meanwhile."""
    for file in files:
        starts = [placed.offset for placed in file.placements]
        ends = [placed.offset + placed.recipe.nbytes for placed in file.placements]
        for end, start in zip(ends[:-1], starts[1:], strict=True):
            _write_all(descriptors[file.name], memoryview(bytes(start - end)), end)


def _intact(
    work: Sequence[Unit],
    entries: Mapping[int, tuple[int, ...]],
    writer: _Writer,
    workers: ThreadPoolExecutor,
) -> list[Unit]:
    """The units that an earlier run has written, as the journal's entries say."""
    known = [unit for unit in work if unit.number in entries]
    checks = [workers.submit(writer.is_intact, unit, entries) for unit in known]
    _finish(checks)
    return [unit for unit, check in zip(known, checks, strict=True) if check.result()]


def _finish(tasks: Sequence[Future[Any]]) -> None:
    """Wait for all, or for the first error, and raise it."""
    done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
    for task in done:
        task.result()


def _read_back(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop and (data := os.pread(descriptor, min(_PIECE_BYTES, stop - start), start)):
        yield data
        start += len(data)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _bytes(values: np.ndarray, dtype: ir.DataType) -> memoryview:
    if dtype.bitwidth < 8 and values.dtype != np.uint8:  # bytes are packed already
        return memoryview(ir.Tensor(values, dtype=dtype).tobytes())
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def _named(weight: str) -> Iterator[None]:
    """Turns an error of a recipe into one that names the weight."""
    try:
        yield
    except ValueError as error:
        advice = "choose another --dtype" if "does not fit" in str(error) else "check the checkpoint"
        raise InputError(f"{weight}: {error}" + ("" if ";" in str(error) else f"; {advice}")) from error
