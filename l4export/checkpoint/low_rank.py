"""Weights with an adapter merged into them, in float32, computed for the region that is asked for.

LoRA changes a matrix W [out, in] to W + s B A with A [r, in] and B [out, r] (arXiv 2106.09685). DoRA then gives every
row a magnitude m of its own (arXiv 2402.09353):

    W' = m (W + s B A) / |W + s B A|

Routed experts are one parameter [experts, d1, d2] each. PEFT gives it the matrices of a linear layer whose rank is
experts * r: A [experts * r, d2] has the experts one after the other, and in B [d1, r * experts] the expert is what
changes fastest:

    W'[e] = W[e] + s B[:, e::experts] A[e * r : (e + 1) * r]

Before it told in from out as transformers stores experts, A had d1 columns and B had d2 rows, and the change of an
expert is the transpose of that product. An embedding's matrices are transposed in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from l4export.checkpoint.stored_weight import ComputedWeight, Part, StoredWeight
from l4export.weights.recipes import Cast, Source

__all__ = ["DoraWeight", "LoraWeight", "LowRank", "ReplacedWeight"]

_TILE = 128
"""Products are computed in tiles of so many rows and columns, always the same ones: then no element depends on the
region that was asked for, although sums in a matrix product depend on its shape. A tile is too small for threads."""


@dataclass(frozen=True)
class LowRank:
    """The change s B A of a matrix, or of each matrix of a stack.

    Attributes:
        a: [experts * rank, columns], or with `transposed` as many as the matrix has rows.
        b: [rows, rank * experts], or with `transposed` as many as the matrix has columns.
        scale: s.
        experts: How many matrices are changed.
        transposed: Whether a change is (B A)^T.
    """

    a: StoredWeight
    b: StoredWeight
    scale: float
    experts: int = 1
    transposed: bool = False

    def add_to(self, out: NDArray[np.float32], expert: int, rows: slice, columns: slice) -> None:
        """Add what an expert's matrix is changed by in a region to `out`, which is that region of it."""
        height, width = self._shape
        left, right = self._left(expert, _aligned(rows, height)), self._right(expert, _aligned(columns, width))
        for i, in_tile_rows, to_rows in _tiles(rows):
            for j, in_tile_columns, to_columns in _tiles(columns):
                tile = left[i : i + _TILE] @ right[:, j : j + _TILE]
                out[to_rows, to_columns] += tile[in_tile_rows, in_tile_columns]

    @property
    def _shape(self) -> tuple[int, int]:
        sizes = self.b.shape[0], self.a.shape[1]
        return (sizes[1], sizes[0]) if self.transposed else sizes

    def _left(self, expert: int, rows: slice) -> NDArray[np.float32]:
        """The scaled left factor [rows, rank]."""
        return np.float32(self.scale) * (self._of_a(expert, rows).T if self.transposed else self._of_b(expert, rows))

    def _right(self, expert: int, columns: slice) -> NDArray[np.float32]:
        """The right factor [rank, columns]."""
        return self._of_b(expert, columns).T if self.transposed else self._of_a(expert, columns)

    def _of_a(self, expert: int, columns: slice) -> NDArray[np.float32]:
        rank = self.a.shape[0] // self.experts
        return self.a.read((slice(expert * rank, (expert + 1) * rank), columns)).astype(np.float32)

    def _of_b(self, expert: int, rows: slice) -> NDArray[np.float32]:
        return self.b.read((rows, slice(expert, None, self.experts))).astype(np.float32)


class LoraWeight(ComputedWeight):
    """A matrix, or a stack of them, with a change of low rank."""

    def __init__(self, base: StoredWeight, change: LowRank) -> None:
        super().__init__(base.name, base.shape, np.dtype(np.float32), _parts(base, change.a, change.b))
        self._base, self._change = Cast(Source(base, checked=False), ir.DataType.FLOAT), change

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The base's region, and in each of its matrices the change."""
        out = self._base.read(region)
        *outer, rows, columns = region
        experts = range(outer[0].start, outer[0].stop) if outer else range(1)
        with np.errstate(over="ignore", invalid="ignore"):  # the reader refuses what is not finite
            for expert, matrix in zip(experts, out.reshape(len(experts), *out.shape[-2:]), strict=True):
                self._change.add_to(matrix, expert, rows, columns)
        return out


class DoraWeight(ComputedWeight):
    """A merged matrix [out, in] whose rows have the magnitudes [out]."""

    def __init__(self, merged: LoraWeight, magnitude: StoredWeight) -> None:
        super().__init__(merged.name, merged.shape, merged.dtype, _parts(merged, magnitude))
        self._merged, self._magnitude = merged, magnitude

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region, a few whole rows at a time: their norms need all columns."""
        rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], np.float32)
        magnitude = self._magnitude.read((rows,)).astype(np.float32)
        for start in range(0, len(out), _TILE):
            some = slice(start, min(start + _TILE, len(out)))
            whole = self._merged.read((slice(rows.start + some.start, rows.start + some.stop),))
            norms = np.linalg.norm(whole.astype(np.float64), axis=1)
            with np.errstate(all="ignore"):  # a row of zeros, too: the reader refuses what is not finite
                out[some] = (magnitude[some] / norms).astype(np.float32)[:, None] * whole[:, columns]
        return out


class ReplacedWeight(ComputedWeight):
    """A weight in whose place an adapter has another."""

    def __init__(self, base: StoredWeight, other: StoredWeight) -> None:
        super().__init__(base.name, base.shape, other.dtype, _parts(base, other))
        self._other = other

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The other one's."""
        return self._other.read(region)


def _parts(*weights: StoredWeight) -> list[Part]:
    return list({id(part): part for weight in weights for part in weight.parts}.values())


def _aligned(cut: slice, size: int) -> slice:
    """The whole tiles that a range of an axis lies in."""
    return slice(cut.start - cut.start % _TILE, min(-(-cut.stop // _TILE) * _TILE, size))


def _tiles(cut: slice) -> Iterator[tuple[int, slice, slice]]:
    """For each tile: where it begins in the aligned range, which part of it is asked for, and where that goes."""
    first = cut.start - cut.start % _TILE
    for start in range(first, cut.stop, _TILE):
        low, high = max(cut.start, start), min(cut.stop, start + _TILE)
        yield start - first, slice(low - start, high - start), slice(low - cut.start, high - cut.start)
