"""Weights that are other weights seen in another way: some of their rows, turned, stacked, several side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np

from l4export.checkpoint.matrix_codes import MatrixCodes, codes_of
from l4export.checkpoint.stored_weight import ComputedWeight, Part, StoredWeight

__all__ = ["Joined", "Rows", "Stacked", "Transposed"]


class Rows(ComputedWeight):
    """The rows `start` to `stop` of a weight."""

    def __init__(self, weight: StoredWeight, start: int, stop: int) -> None:
        super().__init__(weight.name, (stop - start, *weight.shape[1:]), weight.dtype, weight.parts, weight.formats)
        self._weight, self._start = weight, start

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The same region, further down."""
        rows, *rest = region
        return self._weight.read((slice(rows.start + self._start, rows.stop + self._start), *rest))


class Transposed(ComputedWeight):
    """A matrix [a, b] as [b, a]."""

    def __init__(self, weight: StoredWeight) -> None:
        super().__init__(weight.name, weight.shape[::-1], weight.dtype, weight.parts, weight.formats)
        self._weight = weight

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region across."""
        return self._weight.read(region[::-1]).T


class Stacked(ComputedWeight):
    """A matrix [n * a, b] as a stack [n, a, b]."""

    def __init__(self, weight: StoredWeight, count: int) -> None:
        rows, columns = weight.shape
        super().__init__(weight.name, (count, rows // count, columns), weight.dtype, weight.parts, weight.formats)
        self._weight = weight

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Matrix by matrix, so that no row is read that was not asked for."""
        matrices, rows, columns = region

        def values(matrix: int) -> np.ndarray:
            first = matrix * self.shape[1]
            return self._weight.read((slice(first + rows.start, first + rows.stop), columns))

        if matrices.stop - matrices.start == 1:  # as a build asks for them: without another copy
            return values(matrices.start)[None]
        out = np.empty([cut.stop - cut.start for cut in region], self.dtype)
        for index, matrix in enumerate(range(matrices.start, matrices.stop)):
            out[index] = values(matrix)
        return out


class Joined(ComputedWeight):
    """Weights that are alike but for their size along `axis`, one behind the other along it."""

    def __init__(self, name: str, weights: Sequence[StoredWeight], axis: int) -> None:
        shape = list(weights[0].shape)
        shape[axis] = sum(weight.shape[axis] for weight in weights)
        dtype = functools.reduce(np.promote_types, {weight.dtype for weight in weights})
        parts: dict[int, Part] = {id(part): part for weight in weights for part in weight.parts}
        formats = [form for weight in weights for form in weight.formats]
        super().__init__(name, shape, dtype, list(parts.values()), formats)
        self._weights, self._axis = tuple(weights), axis

    @functools.cached_property
    def coded(self) -> MatrixCodes | None:
        """The weights' codes, if all have codes of one format, and no scale is for parts of two of them."""
        coded = [codes for weight in self._weights if (codes := codes_of(weight))]
        if len(coded) < len(self._weights) or len({each.format for each in coded}) != 1:
            return None
        axis = self._axis if len(self.shape) == 2 else 3 - self._axis  # of matrices [.., N, K]

        def joined(parts: Iterable[StoredWeight]) -> Joined:
            return Joined(self.name, list(parts), axis)

        return MatrixCodes(coded[0].format, joined(each.codes for each in coded), joined(each.scales for each in coded))

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """What each has of the region."""
        out = np.empty([cut.stop - cut.start for cut in region], self.dtype)
        bits = out.view(f"u{self.dtype.itemsize}")  # copies between strided bfloat16 arrays are slow
        wanted, start = region[self._axis], 0
        for weight in self._weights:
            stop = start + weight.shape[self._axis]
            low, high = max(wanted.start, start), min(wanted.stop, stop)
            if low < high:
                theirs, mine = list(region), [slice(None)] * len(region)
                theirs[self._axis] = slice(low - start, high - start)
                mine[self._axis] = slice(low - wanted.start, high - wanted.start)
                values = weight.read(tuple(theirs)).astype(self.dtype, copy=False)
                bits[tuple(mine)] = values.view(bits.dtype)
            start = stop
        return out
