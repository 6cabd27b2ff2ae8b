"""A quantised weight: its codes, scales and zero points are lazy tensors of one evaluation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from l4export.quantization.quantize import quantize_rows
from l4export.quantization.schemes import FP8_BLOCK, Scheme
from l4export.weights.evaluation import Evaluation, Output
from l4export.weights.recipes import Cast, Constant, Interleave, Recipe, Region, Slice, Source, Transpose

__all__ = ["CodedWeight", "GivenWeight", "QuantizedWeight", "in_place_of_source", "source_of"]


class CodedWeight(Evaluation):
    """A weight [N, K] or [E, N, K] that is held as codes and scales, as `scheme` says
    (`l4export.quantization.schemes`).

    Its outputs are `codes`, `scales` and `zero_points` (None for symmetric schemes). `codes_as` gives the codes in
    another shape of the same bytes. Codes of the integer kinds are bytes; codes of positive schemes are INT4 or INT8
    elements in the weight's shape. fp8 scales are [.., N, 1] or [.., N, ceil(K / 128)]: the scale of a block is
    repeated for each of its 128 rows, because DequantizeLinear with blocks along K wants them so.

    Raises:
        ValueError: a block size that does not divide K.
    """

    def __init__(self, dims: Sequence[int], scheme: Scheme, row_multiple: int = 1) -> None:
        *outer, n, k = dims
        scheme.check(k)
        super().__init__((*outer, n), row_multiple)
        self.scheme = scheme
        self.k = k
        code, width = _code(scheme, n, k)
        scale = ir.DataType.from_numpy(np.dtype(scheme.scale_dtype))
        outputs = [
            Output(self, 0, code, (*outer, n, width)),
            Output(self, 1, scale, (*outer, n, scheme.scales_shape(n, k)[1])),
        ]
        zeros = scheme.zero_points_shape(n, k)
        if zeros is not None:
            outputs.append(Output(self, 2, ir.DataType.UINT8, (*outer, *zeros)))
        self.outputs = tuple(outputs)

    @property
    def codes(self) -> Recipe:
        """The codes: uint8 (packed), int4, int8 or float8."""
        return self.outputs[0]

    @property
    def scales(self) -> Recipe:
        """The scales, in the scheme's dtype."""
        return self.outputs[1]

    @property
    def zero_points(self) -> Recipe | None:
        """The packed zero points of an asymmetric scheme: uint8."""
        return self.outputs[2] if len(self.outputs) > 2 else None

    def codes_as(self, *dims: int) -> Output:
        """Return the codes in another shape. The bytes are stored once."""
        return Output(self, 0, self.codes.dtype, dims)

    def scales_as(self, *dims: int) -> Output:
        """Return the scales in another shape. The bytes are stored once."""
        return Output(self, 1, self.scales.dtype, dims)


class QuantizedWeight(CodedWeight):
    """A weight that is rounded to nearest along K as it is read.

    Casts of the recipe are skipped, so codes are made from the checkpoint's own numbers.
    """

    def __init__(self, weight: Recipe, scheme: Scheme) -> None:
        square = scheme.kind == "fp8" and scheme.block_size > 0
        super().__init__(weight.dims, scheme, row_multiple=FP8_BLOCK if square else 1)
        self.weight = _as_stored(weight, checked=False)
        self._named = functools.partial(_read_checked, weight)
        self.square = square

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """Compute codes, scales and zero points of some rows, in one pass over their part of the checkpoint.

        Raises:
            ValueError: a number is not finite (the message says its place in the whole weight), or too large for
                the dtype of scales.
        """
        counts = [cut.stop - cut.start for cut in region]
        rows = counts[-1]
        codes, scales, zero_points = self.scheme.allocate(math.prod(counts), self.k)
        if self.square:
            scales = np.empty((math.prod(counts), *scales.shape[1:]), scales.dtype)
        for i, index in enumerate(np.ndindex(*counts[:-1])):
            outer = tuple(slice(cut.start + j, cut.start + j + 1) for cut, j in zip(region, index, strict=False))
            part = (*outer, region[-1], slice(0, self.k))
            mine = slice(i * rows, (i + 1) * rows)
            try:
                self._quantize(part, codes[mine], scales[mine], None if zero_points is None else zero_points[mine])
            except ValueError:
                self._named(part)  # names a number that is not finite by its place in the whole weight
                raise
        return tuple(array.reshape(*counts, -1) for array in (codes, scales, zero_points) if array is not None)

    def _quantize(self, part: Region, codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None) -> None:
        """Quantise the rows of one matrix."""
        if self.square:  # a block needs neighbouring rows together, so rows are interleaved beforehand
            blocks = np.empty(self.scheme.scales_shape(len(codes), self.k), scales.dtype)
            quantize_rows(_matrix(self.weight.read(part)), self.scheme, codes, blocks)
            scales[:] = np.repeat(blocks, FP8_BLOCK, axis=0)[: len(codes)]
            return
        for piece in _stored_pieces(self.weight, part, self.scheme.block_size):
            quantize_rows(
                piece.values, self.scheme, codes, scales, zero_points,
                piece.row, piece.row_step, piece.transposed, piece.column,
            )  # fmt: skip


def _code(scheme: Scheme, n: int, k: int) -> tuple[ir.DataType, int]:
    """Return the element type and the last dimension of the codes."""
    if scheme.kind == "fp8":
        return ir.DataType.FLOAT8E4M3FN, k
    if scheme.positive:
        return (ir.DataType.INT4 if scheme.kind == "int4" else ir.DataType.INT8), k
    return ir.DataType.UINT8, scheme.codes_shape(n, k)[1]


class GivenWeight(CodedWeight):
    """A weight whose codes, scales and zero points are there already: what a calibration found, or a checkpoint stores.

    They are `parts`. Each is laid out as the checkpoint's tensor is, but narrower along K, so the slices and
    transpositions of the recipe apply to them too.
    """

    def __init__(self, weight: Recipe, scheme: Scheme, parts: Sequence[Recipe]) -> None:
        super().__init__(weight.dims, scheme)
        self.parts = [in_place_of_source(weight, part) for part in parts]

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """Return the region of each part."""
        return tuple(np.ascontiguousarray(part.read((*region, slice(0, part.dims[-1])))) for part in self.parts)


def source_of(recipe: Recipe) -> Source:
    """Return the one checkpoint tensor that a weight is made of."""
    found: list[Source] = []

    def note(source: Source) -> Source:
        found.append(source)
        return source

    _with_source(recipe, note)
    return found[0]


def in_place_of_source(recipe: Recipe, part: Recipe) -> Recipe:
    """Return the recipe without its casts, and with `part` where it reads the checkpoint."""
    return _with_source(recipe, lambda _: part)


@dataclass(frozen=True)
class _Piece:
    """A part of a matrix as it is stored: `values` is [n, k], or [k, n] if `transposed`.

    Row i of the part is row `row` + `row_step` * i of the matrix. Its first column is column `column` of the matrix.
    """

    values: np.ndarray
    transposed: bool
    row: int
    row_step: int
    column: int


def _stored_pieces(recipe: Recipe, region: Region, block: int) -> Iterator[_Piece]:
    """Yield what must be read for `region` of a weight as it lies in the checkpoint. The kernel reorders it.

    Rows are cut at multiples of `block`, or not at all if `block` is 0.
    """
    if isinstance(recipe, Transpose) and _swaps_last_two(recipe.perm):
        stored = (*region[:-2], region[-1], region[-2])
        if block == 0:
            yield _Piece(_matrix(recipe.part.read(stored)), True, 0, 1, 0)
            return
        for first, values in recipe.part.rows(stored, block):
            yield _Piece(values, True, 0, 1, first)
    elif isinstance(recipe, Interleave) and recipe.axis == len(recipe.dims) - 2:
        n, cut = len(recipe.parts), region[-2]
        starts, stops = ([-((j - bound) // n) for j in range(n)] for bound in (cut.start, cut.stop))
        cuts = [(*region[:-2], slice(start, stop), region[-1]) for start, stop in zip(starts, stops, strict=True)]
        parts = [_stored_pieces(part, cut, block) for part, cut in zip(recipe.parts, cuts, strict=True)]
        for pieces in itertools.zip_longest(*parts):  # by turns, because parts may lie on the same pages
            for j, piece in enumerate(pieces):
                if piece:
                    row = (starts[j] + piece.row) * n + j - cut.start
                    yield dataclasses.replace(piece, row=row, row_step=piece.row_step * n)
    else:
        for first, values in recipe.rows(region):
            yield _Piece(values, False, first, 1, 0)


def _read_checked(weight: Recipe, region: Region) -> np.ndarray:
    """Read the region. A number that is not finite is a `ValueError` with its place in the whole weight."""
    return _as_stored(weight, checked=True).read(region)


def _as_stored(recipe: Recipe, checked: bool) -> Recipe:
    """Return the recipe without its casts. Sources look for numbers that are not finite only if `checked`."""
    return _with_source(recipe, lambda source: Source(source.data, checked))


def _with_source(recipe: Recipe, made: Callable[[Source], Recipe]) -> Recipe:
    """Return the recipe without its casts, and with `made(source)` where it reads the checkpoint."""
    match recipe:
        case Source():
            return made(recipe)
        case Cast():
            return _with_source(recipe.part, made)
        case Slice():
            return Slice(_with_source(recipe.part, made), recipe.axis, recipe.cut.start, recipe.cut.stop)
        case Transpose():
            return Transpose(_with_source(recipe.part, made), recipe.perm)
        case Interleave():
            return Interleave([_with_source(part, made) for part in recipe.parts], recipe.axis)
        case Constant() | Output():
            return recipe
    raise TypeError(f"{type(recipe).__name__}: a weight made like this cannot be quantised")


def _swaps_last_two(perm: Sequence[int]) -> bool:
    axes = list(range(len(perm)))
    return list(perm) == [*axes[:-2], axes[-1], axes[-2]]


def _matrix(values: np.ndarray) -> np.ndarray:
    """Return the last two axes. Those before them have length 1 here."""
    return np.ascontiguousarray(values.reshape(values.shape[-2:]))
