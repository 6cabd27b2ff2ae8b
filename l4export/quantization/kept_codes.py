"""Codes that a checkpoint stores, laid out for an engine's operators: the same codes, and scales in the scheme's dtype.

Those of a checkpoint, mostly bfloat16, are exact in it, but for float16: from 2^-14 upwards float32 ones are rounded by
at most one part in 2048; below it has multiples of 2^-24 alone, so that a weight moves by at most 2^-25 times its code,
1.4e-5 in FP8; and too large ones are an error.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from l4export.quantization.schemes import BLOCK_SIZES, FP8_BLOCK, Kind, ScaleDtype, Scheme
from l4export.quantization.weights import GivenWeight, source_of
from l4export.weights.coded_data import CodedData, CodeFormat, HasCodes
from l4export.weights.recipes import Cast, Recipe, Region, Source, Transpose

__all__ = ["coded_data", "kept_scheme", "kept_weight"]


def coded_data(stored: object) -> CodedData | None:
    """The codes of a stored weight; None where it has none that could be kept."""
    return stored.coded if isinstance(stored, HasCodes) else None


def kept_scheme(form: CodeFormat, k: int) -> tuple[Kind, int, bool] | None:
    """Kind, block size and symmetry of the scheme with the largest blocks that holds such codes of a weight [.., N, k].

    Blocks may be smaller than what shares a scale, which is then repeated. None: no scheme holds them.
    """
    whole = form.columns >= k
    if form.is_float:
        return ("fp8", 0, True) if whole else ("fp8", FP8_BLOCK, True) if form.columns % FP8_BLOCK == 0 else None
    span = k if whole else form.columns
    fits = [size for size in BLOCK_SIZES if span % size == 0 == k % span]
    return ("int4" if form.bits == 4 else "int8", fits[-1], form.symmetric) if fits else None


def kept_weight(weight: Recipe, scheme: Scheme) -> GivenWeight:
    """A weight [N, K] or [E, N, K] of one stored weight that has codes which `scheme` holds (`kept_scheme`)."""
    coded = coded_data(source_of(weight).data)
    assert coded is not None, "only stored codes are kept"
    return GivenWeight(weight, scheme, [_as_stored(part) for part in _matrices(coded, scheme)])


def _matrices(coded: CodedData, scheme: Scheme) -> list[Recipe]:
    """[.., N, K']."""
    form, codes = coded.format, Source(coded.codes, checked=False)
    k = codes.dims[-1] * 8 // form.bits
    scales: Recipe = Source(coded.scales)
    if scheme.block_size:
        scales = _Repeated(scales, -(-min(form.columns, k) // scheme.block_size))
    if scheme.positive:
        scales = _Changed(scales, scales.dtype, _above_zero(scheme.scale_dtype))
    if scheme.scale_dtype != "float32":
        scales = Cast(scales, ir.DataType.from_numpy(np.dtype(scheme.scale_dtype)))
    if scheme.positive and not form.is_float:
        return [_Changed(codes, codes.dtype, _twos_complement(form.bits)), scales]
    if coded.zero_points is None:
        return [codes, scales]
    zeros = _Repeated(Source(coded.zero_points, checked=False), min(form.columns, k) // scheme.block_size)
    return [codes, scales, zeros if form.bits == 8 else _Paired(zeros)]


def _as_stored(part: Recipe) -> Recipe:
    """In the checkpoint's order of axes: [N, K'], or [E, K', N] for experts."""
    return part if len(part.dims) == 2 else Transpose(part, (0, 2, 1))


class _Repeated(Recipe):
    """Each column, `times` times."""

    def __init__(self, part: Recipe, times: int) -> None:
        super().__init__(part.dtype, (*part.dims[:-1], part.dims[-1] * times))
        self.part, self.times = part, times

    def read(self, region: Region) -> np.ndarray:
        """The columns that the region needs, repeated and cut."""
        start, stop = region[-1].start, region[-1].stop
        first = start // self.times
        columns = self.part.read((*region[:-1], slice(first, -(-stop // self.times))))
        return columns.repeat(self.times, axis=-1)[..., start - first * self.times : stop - first * self.times]


class _Paired(Recipe):
    """Numbers of 4 bits, two to a byte along the last axis: the first in the lower half; 0 fills the last byte."""

    def __init__(self, part: Recipe) -> None:
        super().__init__(part.dtype, (*part.dims[:-1], -(-part.dims[-1] // 2)))
        self.part = part

    def read(self, region: Region) -> np.ndarray:
        """The region's numbers, paired."""
        stop = min(2 * region[-1].stop, self.part.dims[-1])
        numbers = self.part.read((*region[:-1], slice(2 * region[-1].start, stop)))
        low, high = numbers[..., 0::2], numbers[..., 1::2]
        out = low.copy()
        out[..., : high.shape[-1]] |= high << 4
        return out


class _Changed(Recipe):
    """Every element changed by a function."""

    def __init__(self, part: Recipe, dtype: ir.DataType, function: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(dtype, part.dims)
        self.part, self._function = part, function

    def read(self, region: Region) -> np.ndarray:
        """What the function makes of the region."""
        return self._function(self.part.read(region))


def _above_zero(dtype: ScaleDtype) -> Callable[[np.ndarray], np.ndarray]:
    """From scales to those of positive schemes, which are above zero in their own dtype too.

    All codes of a block with scale 0 mean 0, so it may have any: 1. What is too small for the dtype becomes its
    smallest number, and not 0, which a runtime may refuse.
    """
    smallest = np.float32(ml_dtypes.finfo(dtype).smallest_subnormal)
    return lambda scales: np.where(scales == 0, np.float32(1), np.maximum(scales, smallest))


def _twos_complement(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """From unsigned codes to signed ones: the highest bit of each is another."""
    mask = np.uint8(0x88 if bits == 4 else 0x80)
    return lambda codes: codes ^ mask
