"""Linear layers as compressed-tensors stores them: codes, scales, and whatever else is needed to get numbers back.

The tensors of a layer beside each other, for a weight [out, in]:

    weight             FP8 or int8 codes [out, in]
    weight_packed      or int4 or int8 codes, packed into words: int32 [out, in * bits / 32]
    weight_scale       a float for each block of the matrix
    weight_zero_point  the code that means 0, for each block; int8, or packed along `out` as codes are along `in`
    weight_g_idx       the group of each column, where groups are not neighbours: int32 [in]
    weight_shape       [out, in], beside packed codes

The names, and what `weight[r, c]` is, are those of the library of that name (`quantization/lifecycle/forward.py`). The
product is made in float32: it is exact for a scale in bfloat16 or float16. Scales of the layer's inputs and outputs may
be there too. They are for programs that round activations, and change no weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from l4export.checkpoint.matrix_codes import Computed, MatrixCodes, check_codes, check_products
from l4export.checkpoint.packed_ints import PackedInts, packed_octets
from l4export.checkpoint.quantization_scheme import Expected, Scheme
from l4export.checkpoint.scales import damaged, decode, multiply, read_scales
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import ComputedWeight
from l4export.checkpoint.transpose import transposed
from l4export.errors import InputError
from l4export.weights.coded_data import CodeFormat

__all__ = ["QuantizedLinear", "find_linear"]

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_CODES = 2**22  # codes that are read at a time, so that they stay small beside what is computed
_BATCH = 2**18  # elements that are computed at a time: the caches hold them
_OF_WEIGHT = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
_OF_ACTIVATIONS = ("input_scale", "input_zero_point", "input_scale_ub", "output_scale", "output_zero_point")


def find_linear(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, SourceTensor], schemes: Sequence[Scheme]
) -> QuantizedLinear | None:
    """The weight `name`, [out, in], of a linear layer whose codes are there; None where there are none.

    Raises:
        InputError: the layer's tensors are not those that one of the schemes has.
    """
    module, _, last = name.rpartition(".")
    packed = name not in tensors
    codes = tensors.get(f"{module}.weight_packed" if packed else name)
    if last != "weight" or len(shape) != 2 or codes is None:
        return None
    if not schemes:
        raise InputError(
            f"{codes.file.path}: tensor {codes.name!r} ({codes.entry.dtype}) is of a quantised weight, but config.json "
            "has no quantization_config that says how it was quantised; take the config.json that belongs to it"
        )
    own = "weight_packed" if packed else "weight"
    parts = {each: tensors[full] for each in (own, *_OF_WEIGHT) if (full := f"{module}.{each}") in tensors}
    problems = {scheme: _problem(module, parts, scheme.tensors(shape, packed)) for scheme in schemes}
    if not (fitting := [scheme for scheme, problem in problems.items() if problem is None]):
        closest, problem = min(problems.items(), key=lambda item: repr(codes.name) in str(item[1]))
        raise InputError(
            f"{codes.file.path}: {problem} (quantization_config: {closest}); config.json and the weights do not match"
        )
    if len({(scheme.bits, tuple(map(min, scheme.span(shape), shape))) for scheme in fitting}) > 1:
        raise InputError(
            f"{codes.file.path}: tensor {codes.name!r} may be {' or '.join(map(str, fitting))}: quantization_config "
            "has both; leave there the one that it is"
        )
    others = [tensors[full] for each in _OF_ACTIVATIONS if (full := f"{module}.{each}") in tensors]
    return QuantizedLinear(name, shape, fitting[0], parts, others)


def _problem(module: str, parts: Mapping[str, SourceTensor], expected: Mapping[str, Expected]) -> str | None:
    """What keeps a layer's tensors from being the expected ones, as a sentence; None: nothing does."""
    for each in dict.fromkeys((*parts, *expected)):  # the codes first
        name, found, wanted = f"{module}.{each}", parts.get(each), expected.get(each)
        if found is None or wanted is None:
            return f"tensor {name!r} {'is missing' if found is None else 'has no place'}"
        if found.shape not in wanted.shapes:
            shapes = " or ".join(str(list(shape)) for shape in wanted.shapes)
            return f"tensor {name!r} has shape {list(found.shape)}, expected {shapes}"
        if found.entry.dtype not in wanted.dtypes:
            return f"tensor {name!r} has dtype {found.entry.dtype}, expected {' or '.join(wanted.dtypes)}"
    return None


class QuantizedLinear(ComputedWeight):
    """The weight [out, in] of a layer with the tensors of a scheme (`Scheme.tensors`), in float32."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        scheme: Scheme,
        tensors: Mapping[str, SourceTensor],
        others: Sequence[SourceTensor],
    ) -> None:
        super().__init__(name, shape, np.dtype(np.float32), [*tensors.values(), *others], [str(scheme)])
        self._scheme = scheme
        self._tensors = tensors
        self._span = scheme.span(shape)
        packed = tensors.get("weight_packed")
        self._codes = PackedInts(packed, scheme.bits, axis=1) if packed else tensors["weight"]
        zeros = tensors.get("weight_zero_point")
        in_words = scheme.packs_zero_points(packed is not None)
        self._zeros = PackedInts(zeros, scheme.bits, axis=0) if zeros and in_words else zeros

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Codes less zero points, times scales.

        Raises:
            InputError: a sidecar's values cannot be right.
        """
        rows, columns = region
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        if out.size:
            self._check_shape()
            groups = self._groups()
            for some, part in _batches(out, _CODES):
                self._fill(part, _within(rows, some), columns, groups, turned=False)
        return out

    def read_turned(self, rows: slice, columns: slice, out: np.ndarray) -> None:
        """As `TurnedMatrix`; raises as `compute`."""
        if out.size:
            self._check_shape()
            groups = self._groups()
            for some, part in _batches(out, _CODES):
                self._fill(part, rows, _within(columns, some), groups, turned=True)

    def _fill(self, out: np.ndarray, rows: slice, columns: slice, groups: np.ndarray | None, turned: bool) -> None:
        """Write a region to `out`, [rows, columns], or if it is `turned` [columns, rows]."""
        codes = self._codes.read((rows, columns))
        self._check_range(codes, self._tensors.get("weight"))
        high, wide = self._span
        down, of_rows = _blocks(rows, high)
        across, of_columns = _blocks(columns, wide)
        if groups is not None:
            across = slice(int(groups[columns].min()), int(groups[columns].max()) + 1)
            of_columns = groups[columns] - across.start
        blocks = () if self._scheme.strategy == "tensor" else (down, across)
        scale, zeros = self._tensors["weight_scale"], None
        scales = _as_matrix(read_scales(scale, blocks))
        if self._zeros is not None:
            zeros = self._zeros.read(blocks)
            self._check_range(zeros, self._tensors["weight_zero_point"])
            zeros = _as_matrix(zeros.astype(np.float32))
        if turned:
            codes, scales, of_rows, of_columns = transposed(codes), scales.T, of_columns, of_rows
            zeros = None if zeros is None else zeros.T
        for some, part in _batches(out, _BATCH):
            decode(codes[some], part)
            if zeros is not None:
                np.subtract(part, _spread(zeros, of_rows[some], of_columns), out=part)
            multiply(part, _spread(scales, of_rows[some], of_columns), scale)

    def _groups(self) -> np.ndarray | None:
        """The group of every column, where groups are not neighbours. It is not kept: there are thousands of layers."""
        if (index := self._tensors.get("weight_g_idx")) is None:
            return None
        groups = index.read().astype(np.int64)
        if (groups == -1).all():  # as the library initialises it: nothing was reordered
            return None
        neighbours = np.arange(self.shape[1]) // self._span[1]
        if not np.array_equal(np.sort(groups), neighbours):
            raise damaged(index, f"does not put {self._span[1]} columns into each of {int(neighbours[-1]) + 1} groups")
        return groups

    @functools.cached_property
    def coded(self) -> MatrixCodes | None:
        """The codes as they are stored; None where groups are not neighbours."""
        scheme, parts, (rows, columns) = self._scheme, self._tensors, self.shape
        if scheme.reordered:
            return None
        octets, blocks = columns * scheme.bits // 8, scheme.blocks(self.shape)[1]
        code = _FP8 if scheme.is_float else np.uint8
        tensors = list(parts.values())
        zero_points = None
        if self._zeros is not None:
            zero_points = Computed(f"{self.name} zero points", (rows, blocks), np.uint8, tensors, self._unsigned_zeros)
        return MatrixCodes(
            CodeFormat(scheme.bits, scheme.is_float, scheme.symmetric, self._span[1], parts["weight_scale"].dtype),
            Computed(f"{self.name} codes", (rows, octets), code, tensors, self._unsigned_codes),
            Computed(f"{self.name} scales", (rows, blocks), np.float32, tensors, self._row_scales),
            zero_points,
        )

    def _unsigned_codes(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region of `CodedData.codes`."""
        self._check_shape()
        rows, columns = region
        if packed := self._tensors.get("weight_packed"):
            return packed_octets(packed, rows, columns)
        tensor = self._tensors["weight"]
        if self._scheme.is_float:
            return check_codes(tensor.read(region), tensor)
        a_byte = 8 // self._scheme.bits
        codes = tensor.read((rows, slice(columns.start * a_byte, columns.stop * a_byte)))
        self._check_range(codes, tensor)
        unsigned = codes.view(np.uint8) + np.uint8(1 << (self._scheme.bits - 1))
        return unsigned if a_byte == 1 else unsigned[:, 0::2] | unsigned[:, 1::2] << 4

    def _row_scales(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region of `CodedData.scales`. A scale of 0 belongs to weights that are 0, or it is refused."""
        rows, blocks = region
        tensor = self._tensors["weight_scale"]
        scales = self._of_rows(rows, blocks, functools.partial(read_scales, tensor))
        largest = 448 if self._scheme.is_float else 1 << self._scheme.bits
        check_products(scales, largest, tensor)
        if (scales == 0).any():
            for row in rows.start + np.flatnonzero((scales == 0).any(axis=1)):
                self.compute((slice(int(row), int(row) + 1), slice(0, self.shape[1])))
        return scales

    def _unsigned_zeros(self, region: tuple[slice, ...]) -> np.ndarray:
        """The region of `CodedData.zero_points`."""
        assert self._zeros is not None
        rows, blocks = region
        zeros = self._of_rows(rows, blocks, self._zeros.read)
        self._check_range(zeros, self._tensors["weight_zero_point"])
        return np.asarray(zeros.view(np.uint8) + np.uint8(1 << (self._scheme.bits - 1)))

    def _of_rows(self, rows: slice, blocks: slice, read: Callable[[tuple[slice, ...]], np.ndarray]) -> np.ndarray:
        """What each row has of the blocks; `read` reads what is stored, for rows of blocks."""
        if self._scheme.strategy == "tensor":
            return np.broadcast_to(read(()).reshape(1, 1), (rows.stop - rows.start, 1))
        down = np.arange(rows.start, rows.stop) // self._span[0]
        if not down.size:
            return read((slice(0, 0), blocks))
        stored = read((slice(int(down[0]), int(down[-1]) + 1), blocks))
        return np.asarray(np.take(stored, down - down[0], axis=0))

    def _check_shape(self) -> None:
        if self._shape_told != self.shape:
            shape = self._tensors["weight_shape"]
            raise damaged(shape, f"is {list(self._shape_told)}, and the layer is {list(self.shape)}")

    @functools.cached_property
    def _shape_told(self) -> tuple[int, ...]:
        told = self._tensors.get("weight_shape")
        return self.shape if told is None else tuple(map(int, told.read()))

    def _check_range(self, values: np.ndarray, tensor: SourceTensor | None) -> None:
        """Refuse integers of 8 bits that the scheme's codes of 4 bits cannot be."""
        limit = 1 << (self._scheme.bits - 1)
        if limit == 128 or tensor is None:
            return
        if values.min() < -limit or values.max() >= limit:
            raise damaged(tensor, f"has values outside of {-limit} to {limit - 1}, those of {self._scheme.bits} bits")


def _blocks(cut: slice, size: int) -> tuple[slice, np.ndarray]:
    """The blocks that a range touches, where neighbours share one, and which of them each index is in."""
    blocks = slice(cut.start // size, (cut.stop - 1) // size + 1)
    return blocks, np.arange(cut.start, cut.stop) // size - blocks.start


def _as_matrix(values: np.ndarray) -> np.ndarray:
    return values.reshape(1, 1) if values.size == 1 else values


def _spread(values: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """A value a block for every row `down` and column `across`; axes along which all have one are not repeated."""
    rows = values[down] if len(values) > 1 else values
    if rows.shape[1] == 1 or np.array_equal(across, np.arange(rows.shape[1])):
        return rows
    return np.take(rows, across, axis=1)


def _batches(out: np.ndarray, limit: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Pieces of an array along its first axis, of about `limit` elements, each with its place."""
    step = max(1, limit // max(1, out.shape[1]))
    for start in range(0, len(out), step):
        yield (some := slice(start, min(start + step, len(out)))), out[some]


def _within(cut: slice, some: slice) -> slice:
    """Some of the indices of a range."""
    return slice(cut.start + some.start, cut.start + some.stop)
