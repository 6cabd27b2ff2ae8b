"""The codes of quantised weights as a checkpoint has them, for engines that keep them (`CodedData`).

They are checked as they are read, as strictly as when a weight is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from l4export.checkpoint.scales import damaged
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import ComputedWeight, Part, StoredWeight
from l4export.weights.coded_data import CodeFormat

__all__ = ["Computed", "MatrixCodes", "check_codes", "check_products", "codes_of", "stack_matrices"]

Region = tuple[slice, ...]


@dataclass(frozen=True)
class MatrixCodes:
    """As `l4export.weights.coded_data.CodedData`."""

    format: CodeFormat
    codes: StoredWeight
    scales: StoredWeight
    zero_points: StoredWeight | None = None


class Computed(ComputedWeight):
    """An array that a function computes, region by region, from tensors of the checkpoint."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: np.dtype[np.generic] | type,
        parts: Sequence[Part],
        function: Callable[[Region], np.ndarray],
    ) -> None:
        super().__init__(name, shape, np.dtype(dtype), parts)
        self._function = function

    def compute(self, region: Region) -> np.ndarray:
        """What the function gives."""
        return self._function(region)


def codes_of(weight: object) -> MatrixCodes | None:
    """The codes of a stored weight; None where it is made of something else."""
    coded = getattr(weight, "coded", None)
    return coded if isinstance(coded, MatrixCodes) else None


def stack_matrices(name: str, linears: Sequence[Sequence[StoredWeight]]) -> MatrixCodes | None:
    """The codes of experts [E, N, K], of matrices one below the other: `linears[j][e]` is linear layer j of expert e;
    None where some matrix has no codes, or others than the rest."""
    coded = [[codes for matrix in experts if (codes := codes_of(matrix))] for experts in linears]
    formats = {matrix.format for experts in coded for matrix in experts}
    if len(formats) != 1 or sum(map(len, coded)) != sum(map(len, linears)):
        return None

    def stack(of: Callable[[MatrixCodes], StoredWeight]) -> Computed:
        return _stacked(name, [[of(matrix) for matrix in experts] for experts in coded])

    (form,) = formats
    zero_points = None if form.symmetric else stack(lambda matrix: _present(matrix.zero_points))
    return MatrixCodes(form, stack(lambda matrix: matrix.codes), stack(lambda matrix: matrix.scales), zero_points)


def _present(zero_points: StoredWeight | None) -> StoredWeight:
    assert zero_points is not None, "codes without zero points are symmetric"
    return zero_points


def _stacked(name: str, linears: Sequence[Sequence[StoredWeight]]) -> Computed:
    """[E, N, width] of matrices [n, width]."""
    first = linears[0][0]
    heights = [experts[0].shape[0] for experts in linears]
    parts = {id(part): part for experts in linears for matrix in experts for part in matrix.parts}

    def read(region: Region) -> np.ndarray:
        chosen, rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], first.dtype)
        start = 0
        for experts, height in zip(linears, heights, strict=True):
            low, high = max(rows.start, start), min(rows.stop, start + height)
            if low < high:
                for expert in range(chosen.start, chosen.stop):
                    values = experts[expert].read((slice(low - start, high - start), columns))
                    out[expert - chosen.start, low - rows.start : high - rows.start] = values
            start += height
        return out

    shape = (len(linears[0]), sum(heights), first.shape[1])
    return Computed(name, shape, first.dtype, list(parts.values()), read)


def check_codes(codes: np.ndarray, tensor: SourceTensor) -> np.ndarray:
    """Return FP8 codes, none of which may be NaN; E4M3FN has no infinity. Raises `InputError`."""
    if np.any((codes.view(np.uint8) & 0x7F) == 0x7F):
        raise damaged(tensor, "has a code that is NaN")
    return codes


def check_products(scales: np.ndarray, largest: float, tensor: SourceTensor) -> np.ndarray:
    """Return scales, whose product with the largest code must be finite in float32. Raises `InputError`."""
    if scales.size and float(scales.max()) * largest > float(np.finfo(np.float32).max):
        raise damaged(tensor, f"has a scale of {float(scales.max())}, whose weights are not finite")
    return scales
