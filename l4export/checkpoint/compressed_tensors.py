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
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from l4export.checkpoint.coded_weight import CodedWeight, Computed, check_codes, check_products
from l4export.checkpoint.packed_ints import PackedInts, packed_octets
from l4export.checkpoint.quantization_scheme import Expected, Scheme
from l4export.checkpoint.scales import damaged, decode, multiply, read_scales
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import ComputedWeight
from l4export.errors import InputError
from l4export.weights.coded_data import CodeFormat

__all__ = ["QuantizedLinear", "find_linear"]

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_BATCH = 2**20  # elements that are computed at a time: what is made on the way stays small beside the result
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
        self._check_shape()
        rows, columns = region
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), np.float32)
        if not out.size:
            return out
        batch = max(1, _BATCH // out.shape[1])
        for start in range(rows.start, rows.stop, batch):
            piece = slice(start, min(start + batch, rows.stop))
            self._fill(out[start - rows.start : piece.stop - rows.start], piece, columns)
        return out

    def _fill(self, out: np.ndarray, rows: slice, columns: slice) -> None:
        codes = self._codes.read((rows, columns))
        self._check_range(codes, self._tensors.get("weight"))
        decode(codes, out)
        # The blocks that the region touches, and where among them each row and each column is.
        down, across = np.arange(rows.start, rows.stop) // self._span[0], self._groups[columns]
        high = slice(int(down[0]), int(down[-1]) + 1)
        wide = slice(int(across.min()), int(across.max()) + 1)
        down, across = down - high.start, across - wide.start
        blocks = () if self._scheme.strategy == "tensor" else (high, wide)
        if self._zeros is not None:
            zeros = self._zeros.read(blocks)
            self._check_range(zeros, self._tensors["weight_zero_point"])
            out -= _spread(zeros.astype(np.float32), down, across)
        scale = self._tensors["weight_scale"]
        scales = read_scales(scale, blocks)
        multiply(out, _spread(scales, down, across), scale)

    @functools.cached_property
    def _groups(self) -> np.ndarray:
        """The block of every column."""
        width, size = self.shape[1], self._span[1]
        neighbours = np.arange(width) // size
        if (index := self._tensors.get("weight_g_idx")) is None:
            return neighbours
        groups = index.read().astype(np.int64)
        if (groups == -1).all():  # as the library initialises it: nothing was reordered
            return neighbours
        if not np.array_equal(np.sort(groups), neighbours):
            raise damaged(index, f"does not put {size} columns into each of {int(neighbours[-1]) + 1} groups")
        return groups

    @functools.cached_property
    def coded(self) -> CodedWeight | None:
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
        return CodedWeight(
            CodeFormat(scheme.bits, scheme.is_float, scheme.symmetric, self._span[1]),
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


def _spread(values: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """A value a block, or one alone, for every row `down` and column `across`; axes of one element are not repeated."""
    values = values.reshape(1, 1) if values.size == 1 else values
    rows = values[down] if len(values) > 1 else values
    return np.take(rows, across, axis=1) if rows.shape[1] > 1 else rows
