"""Weights of Meta's shards that are stored as FP8 or INT4 codes, with scales in a file beside each shard.

As Meta's program writes and reads them [llama-models, models/llama4/scripts/quantize.py and quantization/loader.py,
models/quantize_impls.py]. A matrix W [K, N] of an expert is quantised as [N, K], by rows or along K, and its codes are
stored turned back. Both kinds of codes have the dtype float8_e4m3fn; the name of the file of scales tells them apart.

    FP8    codes [E K, N]        scales [E, N]          W[e, k, n] = code * scale[e, n]
    INT4   bytes [E K/2, N]      scales [E, K/128, N]   W[e, k, n] = code * scale[e, k // 128, n]
    INT4   bytes [N, K/2]        scales [K/128, N]      W[n, k] = code * scale[k // 128, n], of a shared expert

A byte has two codes of -8 to 7, the one of the even k in its low bits.
"""

from __future__ import annotations

import abc
import functools

import numpy as np

from l4export.checkpoint.matrix_codes import Computed, MatrixCodes, check_codes, check_products
from l4export.checkpoint.meta_shards import MetaShards
from l4export.checkpoint.scales import decode, multiply, read_scales
from l4export.checkpoint.source_tensor import SourceTensor
from l4export.checkpoint.stored_weight import ComputedWeight, StoredWeight
from l4export.checkpoint.weight_views import Transposed
from l4export.errors import InputError
from l4export.weights.coded_data import CodeFormat

__all__ = ["scaled_weight"]

Region = tuple[slice, ...]

_GROUP = 128
_UPPER = np.uint8(0x88)
"""What makes two's complement codes unsigned ones that stand for 0 with 8: the highest bit of each is another."""

_FLOAT32 = np.dtype(np.float32)


def scaled_weight(
    shards: MetaShards, tensor: SourceTensor, rank: int, scale_name: str, experts: int | None
) -> StoredWeight:
    """What a shard has of a quantised weight, as float32: [E, K, N] of experts, [N, K] of a linear layer (None).

    Args:
        shards: All shards.
        tensor: The codes.
        rank: Of the shard that has them.
        scale_name: The name of the scales, unless it is that of the codes.
        experts: How many matrices the codes are of; None: one linear layer.

    Raises:
        InputError: there are no scales for it, or they do not fit.
    """
    if shards.scales_kind is None:
        raise InputError(
            f"{tensor.file.path}: tensor {tensor.name!r} has codes of FP8 or INT4, and fp8_scales_{rank}.pt or "
            f"int4_scales_{rank}.pt is missing; download it"
        )
    there = shards.scales[rank]
    scale = there.get(tensor.name) or there.get(scale_name)
    if scale is None:
        raise InputError(
            f"{shards.path}: {shards.scales_kind}_scales_{rank}.pt has no scales for {tensor.name!r}; download it again"
        )
    if shards.scales_kind == "fp8":
        if experts is None:
            raise InputError(f"{tensor.file.path}: tensor {tensor.name!r} is FP8; only routed experts are")
        return _Fp8Experts(tensor, scale, experts)
    if experts is None:
        return _Int4Linear(tensor, scale)
    return _Int4Experts(tensor, scale, experts)


class _Scaled(ComputedWeight):
    """Codes and scales, multiplied in float32; `_codes_of` and `_scales_of` give the regions of `CodedData`."""

    format: str

    def __init__(self, codes: SourceTensor, scale: SourceTensor, shape: tuple[int, ...], scales: tuple[int, ...]):
        if scale.shape != scales or scale.entry.dtype not in ("F32", "BF16", "F16"):
            raise InputError(
                f"{scale.file.path}: scales {scale.name!r} are {scale.entry.dtype} {list(scale.shape)}, expected "
                f"floats {list(scales)} for codes {list(codes.shape)}"
            )
        super().__init__(codes.name, shape, _FLOAT32, (codes, scale), [self.format])
        self._codes, self._scale = codes, scale

    @abc.abstractmethod
    def _codes_of(self, region: Region) -> np.ndarray:
        """Of matrices [.., N, K]."""

    @abc.abstractmethod
    def _scales_of(self, region: Region) -> np.ndarray:
        """Of matrices [.., N, K]."""

    def _coded(self, matrices: tuple[int, ...], bits: int, columns: int) -> MatrixCodes:
        """The codes of matrices [.., N, K], of which `columns` columns share a scale."""
        *outer, n, k = matrices
        dtype = self._codes.stored_dtype if bits == 8 else np.uint8
        return MatrixCodes(
            CodeFormat(bits, bits == 8, True, columns, self._scale.dtype),
            Computed(f"{self.name} codes", (*outer, n, k * bits // 8), dtype, self.parts, self._codes_of),
            Computed(f"{self.name} scales", (*outer, n, k // columns), np.float32, self.parts, self._checked_scales),
        )

    def _checked_scales(self, region: Region) -> np.ndarray:
        """Scales of 0 belong to weights that are 0, or they are refused."""
        scales = check_products(self._scales_of(region), 448, self._scale)
        if (scales == 0).any():
            rows = region[-2]
            self.compute((*region[:-2], slice(0, self.shape[-2]), rows))
        return scales


class _Fp8Experts(_Scaled):
    format = "FP8, a scale a channel"

    def __init__(self, codes: SourceTensor, scale: SourceTensor, experts: int) -> None:
        rows, columns = _matrix(codes, experts)
        super().__init__(codes, scale, (experts, rows // experts, columns), (experts, columns))

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Expert by expert."""
        experts, rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], np.float32)
        for index, expert in enumerate(range(experts.start, experts.stop)):
            first = expert * self.shape[1]
            codes = self._codes.read((slice(first + rows.start, first + rows.stop), columns))
            decode(codes, out[index])
            multiply(out[index], read_scales(self._scale, (slice(expert, expert + 1), columns)), self._scale)
        return out

    @functools.cached_property
    def coded(self) -> MatrixCodes:
        """The codes as they are stored."""
        experts, k, n = self.shape
        return self._coded((experts, n, k), 8, k)

    def _codes_of(self, region: Region) -> np.ndarray:
        experts, rows, columns = region
        first = [expert * self.shape[1] for expert in range(experts.start, experts.stop)]
        codes = [self._codes.read((slice(at + columns.start, at + columns.stop), rows)).T for at in first]
        return check_codes(np.stack(codes), self._codes)

    def _scales_of(self, region: Region) -> np.ndarray:
        experts, rows, _ = region
        return read_scales(self._scale, (experts, rows))[:, :, None]


class _Int4Experts(_Scaled):
    format = f"INT4, groups of {_GROUP}"

    def __init__(self, codes: SourceTensor, scale: SourceTensor, experts: int) -> None:
        rows, columns = _matrix(codes, experts)
        inner = rows // experts * 2
        super().__init__(codes, scale, (experts, inner, columns), (experts, _groups(codes, inner), columns))

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Expert by expert."""
        experts, rows, columns = region
        out = np.empty([cut.stop - cut.start for cut in region], np.float32)
        height = self.shape[1] // 2
        for index, expert in enumerate(range(experts.start, experts.stop)):
            first = expert * height
            low, high = rows.start // 2, -(-rows.stop // 2)
            packed = self._codes.read((slice(first + low, first + high), columns))
            groups = slice(rows.start // _GROUP, -(-rows.stop // _GROUP))
            out[index] = _unpacked(packed, rows)
            multiply(out[index], _spread(read_scales(self._scale, (expert, groups, columns)), rows), self._scale)
        return out

    @functools.cached_property
    def coded(self) -> MatrixCodes:
        """The codes as they are stored, but for the order of axes and the highest bit of each."""
        experts, k, n = self.shape
        return self._coded((experts, n, k), 4, _GROUP)

    def _codes_of(self, region: Region) -> np.ndarray:
        experts, rows, octets = region
        first = [expert * (self.shape[1] // 2) for expert in range(experts.start, experts.stop)]
        codes = [self._codes.read((slice(at + octets.start, at + octets.stop), rows)).T for at in first]
        return np.stack(codes).view(np.uint8) ^ _UPPER

    def _scales_of(self, region: Region) -> np.ndarray:
        experts, rows, groups = region
        return read_scales(self._scale, (experts, groups, rows)).transpose(0, 2, 1)


class _Int4Matrix(_Scaled):
    """A linear layer as [K, N]."""

    format = f"INT4, groups of {_GROUP}"

    def __init__(self, codes: SourceTensor, scale: SourceTensor) -> None:
        outputs, half = _matrix(codes, 1)
        super().__init__(codes, scale, (half * 2, outputs), (_groups(codes, half * 2), outputs))

    def compute(self, region: tuple[slice, ...]) -> np.ndarray:
        """Codes lie along K."""
        rows, columns = region
        packed = self._codes.read((columns, slice(rows.start // 2, -(-rows.stop // 2)))).T
        groups = slice(rows.start // _GROUP, -(-rows.stop // _GROUP))
        out = _unpacked(packed, rows)
        multiply(out, _spread(read_scales(self._scale, (groups, columns)), rows), self._scale)
        return out

    @functools.cached_property
    def coded(self) -> MatrixCodes:
        """The codes as they are stored, but for the highest bit of each."""
        k, n = self.shape
        return self._coded((n, k), 4, _GROUP)

    def _codes_of(self, region: Region) -> np.ndarray:
        return self._codes.read(region).view(np.uint8) ^ _UPPER

    def _scales_of(self, region: Region) -> np.ndarray:
        rows, groups = region
        return read_scales(self._scale, (groups, rows)).T


class _Int4Linear(Transposed):
    """A linear layer [N, K]."""

    def __init__(self, codes: SourceTensor, scale: SourceTensor) -> None:
        matrix = _Int4Matrix(codes, scale)
        super().__init__(matrix)
        self.coded = matrix.coded


def _matrix(codes: SourceTensor, experts: int) -> tuple[int, int]:
    """Rows and columns of codes, which must be a matrix of whole experts."""
    if len(codes.shape) != 2 or not experts or codes.shape[0] % experts:
        raise InputError(f"{codes.file.path}: tensor {codes.name!r} has shape {list(codes.shape)}, no codes of experts")
    return codes.shape[0], codes.shape[1]


def _groups(codes: SourceTensor, inner: int) -> int:
    if inner % _GROUP:
        raise InputError(
            f"{codes.file.path}: tensor {codes.name!r} has {inner} codes to a row, no multiple of groups of {_GROUP}"
        )
    return inner // _GROUP


def _unpacked(packed: np.ndarray, rows: slice) -> np.ndarray:
    """Codes of bytes [k/2, n] as float32: the rows asked for, of those that the bytes have."""
    pairs = packed.view(np.int8) if packed.flags.c_contiguous else np.ascontiguousarray(packed).view(np.int8)
    codes = np.empty((2 * len(pairs), pairs.shape[1]), np.int8)
    codes[0::2], codes[1::2] = np.left_shift(pairs, 4) >> 4, pairs >> 4  # both shifts keep the sign
    first = rows.start % 2
    return codes[first : first + rows.stop - rows.start].astype(np.float32)


def _spread(scale: np.ndarray, rows: slice) -> np.ndarray:
    """The scale of every row, of those of the groups that the rows touch."""
    wide = np.repeat(scale, _GROUP, axis=0)
    first = rows.start % _GROUP
    return wide[first : first + rows.stop - rows.start]
