"""Where every weight goes, before a byte of it is known.

Data files and offsets follow from dtypes and shapes alone. What is written there is cut into units: parts of an
evaluation's leading region, of a size that depends on nothing but the plan, each of which can be done, checked and done
again by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from l4export.weights.evaluation import Evaluation, Output, evaluation_of, is_constant, side_bytes
from l4export.weights.recipes import Constant, Recipe, Region, as_recipe, whole

__all__ = [
    "INLINE_BYTES",
    "DataFile",
    "Placement",
    "Unit",
    "UnitOutput",
    "arrange",
    "identity",
    "place_weights",
    "plan_digest",
    "subregions",
    "units",
]

INLINE_BYTES = 1024
"""Weights up to this size stay in the graph file."""

_ALIGNMENT = 4096
"""Offsets are multiples of a page, so that a runtime can map a tensor where it lies."""

_FILE_BYTES = 4 << 30
"""A data file is closed before it grows beyond this; a larger tensor has a file of its own."""

_UNIT_BYTES = 64 << 20
"""About how many bytes a unit reads or writes, whichever is more. A killed build may lose as many for each worker, and
what they read must stay in the kernel's cache until it is used."""


@dataclass(frozen=True)
class Placement:
    """Where one weight goes: the recipe that `values` have in common, written at `offset` of its data file."""

    values: tuple[ir.Value, ...]
    recipe: Recipe
    offset: int

    @property
    def name(self) -> str:
        """The first value's name."""
        return str(self.values[0].name)


@dataclass(frozen=True)
class DataFile:
    """One data file: its name, its weights in file order, and its size in bytes."""

    name: str
    placements: tuple[Placement, ...]
    size: int


@dataclass(frozen=True)
class UnitOutput:
    """What a unit writes of one output: `nbytes` at `offset` of `file`."""

    file: str
    output: int
    """Which of the evaluation's outputs."""
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Unit:
    """A region of an evaluation's leading axes, and where the outputs' parts go. `name` is its first weight's."""

    number: int
    name: str
    evaluation: Evaluation
    region: Region
    parts: tuple[UnitOutput, ...]

    @property
    def nbytes(self) -> int:
        """Bytes to be written."""
        return sum(part.nbytes for part in self.parts)


def place_weights(model: ir.Model, stem: str) -> list[DataFile]:
    """Give every weight of more than 1 KiB a file and an offset, in the order of the graph's initializers.

    Initializers that are the same output of the same evaluation share one place. Files are named
    `{stem}-00001-of-00003.data`. Reads no weights.
    """
    shared: dict[object, tuple[Recipe, list[ir.Value]]] = {}
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.nbytes > INLINE_BYTES:
            recipe = as_recipe(value.const_value)
            shared.setdefault(identity(value.const_value), (recipe, []))[1].append(value)
    placed = arrange([recipe.nbytes for recipe, _ in shared.values()])
    files: dict[int, list[Placement]] = {}
    for (number, offset), (recipe, values) in zip(placed, shared.values(), strict=True):
        files.setdefault(number, []).append(Placement(tuple(values), recipe, offset))
    return [
        DataFile(f"{stem}-{i:05d}-of-{len(files):05d}.data", tuple(held), held[-1].offset + held[-1].recipe.nbytes)
        for i, held in enumerate(files.values(), start=1)
    ]


def identity(tensor: ir.TensorProtocol) -> object:
    """Return the same for tensors that need one place: the same output of the same evaluation, or the same object."""
    if isinstance(tensor, Output):
        return id(tensor.evaluation), tensor.index
    return id(tensor.tensor if isinstance(tensor, Constant) else tensor)


def arrange(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """The data file, counted from 0, and the offset of each tensor, for tensors of these sizes in bytes, in order."""
    places: list[tuple[int, int]] = []
    number = end = 0
    for nbytes in sizes:
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        if end and offset + nbytes > _FILE_BYTES:
            number, offset = number + 1, 0
        places.append((number, offset))
        end = offset + nbytes
    return places


def plan_digest(files: Sequence[DataFile]) -> str:
    """sha256 (hex) of names, dtypes, shapes, places and the cut into units, which is what a unit's number stands for,
    and of the tables among them that no checkpoint decides."""
    digest = hashlib.sha256()
    for file in files:
        for placed in file.placements:
            names = [str(value.name) for value in placed.values]
            recipe = placed.recipe
            digest.update(json.dumps([file.name, placed.offset, names, recipe.dtype.name, recipe.dims]).encode())
            if is_constant(recipe):
                digest.update(recipe.tobytes())
    for unit in units(files):
        digest.update(json.dumps([[part.file, part.offset, part.nbytes] for part in unit.parts]).encode())
    return digest.hexdigest()


def units(files: Sequence[DataFile]) -> list[Unit]:
    """The units of work, evaluation by evaluation in the order of the files, numbered from 0."""
    evaluations: dict[int, tuple[Evaluation, list[tuple[DataFile, Placement]]]] = {}
    for file in files:
        for placed in file.placements:
            evaluation = evaluation_of(placed.recipe)
            evaluations.setdefault(id(evaluation), (evaluation, []))[1].append((file, placed))
    return [
        Unit(number, placed[0][1].name, evaluation, region, _parts(evaluation, region, placed))
        for number, (evaluation, region, placed) in enumerate(
            (evaluation, region, placed)
            for evaluation, placed in evaluations.values()
            for region in _unit_regions(evaluation)
        )
    ]


def subregions(evaluation: Evaluation, region: Region, cells: int) -> Iterator[Region]:
    """Cut a region of `lead` into pieces of at most `cells` of its cells, or of one row where that is more.

    Each piece is contiguous in row-major order, and they come in that order. A row is `row_multiple` cells of the last
    axis; of a plain recipe the whole last axis.
    """
    extents = [cut.stop - cut.start for cut in region]
    for piece in _cuts(extents, row_cells(evaluation), cells):
        yield tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(region, piece, strict=True))


def row_cells(evaluation: Evaluation) -> int:
    """Cells of the last leading axis that are never cut apart."""
    if isinstance(evaluation.outputs[0], Output) or len(evaluation.lead) < 2:
        return evaluation.row_multiple
    return evaluation.lead[-1]


def _cuts(extents: Sequence[int], row: int, cells: int) -> Iterator[Region]:
    if 0 in extents:
        return
    if not extents:
        yield ()
        return
    inner = math.prod(extents[1:])
    step = cells // inner
    if len(extents) == 1:
        step = max(row, step // row * row)
    elif step == 0:
        for i in range(extents[0]):
            for rest in _cuts(extents[1:], row, cells):
                yield (slice(i, i + 1), *rest)
        return
    for start in range(0, extents[0], step):
        yield (slice(start, min(start + step, extents[0])), *whole(extents[1:]))


def _unit_regions(evaluation: Evaluation) -> Iterator[Region]:
    cells = math.prod(evaluation.lead)
    return subregions(evaluation, whole(evaluation.lead), _UNIT_BYTES * cells // side_bytes(evaluation))


def _parts(evaluation: Evaluation, region: Region, placed: list[tuple[DataFile, Placement]]) -> tuple[UnitOutput, ...]:
    first = 0
    for cut, length in zip(region, evaluation.lead, strict=True):
        first = first * length + cut.start
    last = first + math.prod(cut.stop - cut.start for cut in region)
    cells = math.prod(evaluation.lead)
    parts = []
    for file, placement in placed:
        recipe = placement.recipe
        start, stop = (recipe.nbytes * cell // cells for cell in (first, last))
        assert recipe.nbytes * first % cells == 0 == recipe.nbytes * last % cells, f"{placement.name}: half a byte"
        index = recipe.index if isinstance(recipe, Output) else 0
        parts.append(UnitOutput(file.name, index, placement.offset + start, stop - start))
    return tuple(parts)
