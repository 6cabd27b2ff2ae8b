"""Quantising and dequantising matrices: the arguments are checked, and the kernel is chosen."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.lib.stride_tricks import as_strided

from l4export.quantization.schemes import FP8_BLOCK, Scheme

__all__ = ["dequantize", "quantize_rows"]

_SOURCES = {np.dtype(ml_dtypes.bfloat16): False, np.dtype(np.float16): True, np.dtype(np.float32): False}


def quantize_rows(
    source: np.ndarray,
    scheme: Scheme,
    codes: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None = None,
    row_start: int = 0,
    row_step: int = 1,
    transposed: bool = False,
    column_start: int = 0,
) -> None:
    """Quantise a matrix. Row n of the result is written to row `row_start + row_step * n` of the outputs.

    `source` is [N, K], or [K, N] if `transposed`. It is bfloat16, float16 or float32, and its last axis must be
    contiguous. The outputs are C-contiguous, and `scheme` says their shapes for their own number of rows
    (`Scheme.allocate`). Rows that are not written stay as they are. The GIL is released, and calls may run at the same
    time on different rows of the same outputs. With fp8-b128 they may run on different blocks of 128 rows: `row_step`
    must be 1, and `row_start` a multiple of 128. For the integer kinds the outputs may have more than K columns: the
    first column of the source goes to column `column_start`, which must be a multiple of the block size. Two zero
    points of 4 bits share a byte, so their columns must be written in order.

    Raises:
        ValueError: `source` has a NaN or an infinity (the message says its row and column in `source`); the block size
            does not divide K; `scale_dtype` cannot hold a scale; an array does not fit. After a number that is not
            finite, and after a scale that cannot be held, the output rows are undefined.
    """
    half = _SOURCES.get(source.dtype)
    if half is None or source.ndim != 2:
        raise ValueError(f"cannot quantise {source.dtype} {list(source.shape)}: bfloat16, float16 or float32 matrices")
    n, k = source.shape[::-1] if transposed else source.shape
    scheme.check(k)
    if 0 in {n, k}:
        return
    _check_outputs(scheme, (n, k), (codes, scales, zero_points), row_start, row_step, column_start)
    from l4export.quantization.kernels import Format, Outputs, Source, kernel

    flat, stride = _flat_bits(source)
    matrix = Source(flat, half, stride, n, k)
    fp8 = scheme.kind == "fp8"
    numbers = codes.view(np.uint32 if transposed and not fp8 else np.uint8)
    zeros = np.empty((codes.shape[0], 0), np.uint8) if zero_points is None else zero_points
    out = Outputs(numbers, *_scale_arrays(scales), zeros, row_start, row_step, column_start)
    if fp8:
        failed = kernel("fp8", source.itemsize)(matrix, transposed, scheme.block_size > 0, scheme.positive, out)
    else:
        form = Format(scheme.bits, scheme.block_size, scheme.symmetric, scheme.positive, scheme.fitted)
        failed = kernel("columns" if transposed else "rows", source.itemsize)(matrix, form, out)
    if failed >= 0:
        _explain(source, failed // k, failed % k, transposed, scheme.scale_dtype)


def dequantize(codes: np.ndarray, scales: np.ndarray, zero_points: np.ndarray | None, scheme: Scheme) -> np.ndarray:
    """Compute the float32 [N, K] matrix that the codes stand for, in plain NumPy.

    `codes`, `scales` and `zero_points` (None for symmetric schemes) are packed as `scheme` says.
    """
    wide = scales.astype(np.float32)
    if scheme.kind == "fp8":
        values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        if scheme.block_size:
            wide = wide.repeat(FP8_BLOCK, 0)[: values.shape[0]].repeat(FP8_BLOCK, 1)[:, : values.shape[1]]
        return np.asarray(values * wide)
    numbers = (_nibbles(codes) if scheme.bits == 4 else codes).astype(np.int16)
    if scheme.positive:
        numbers ^= 1 << (scheme.bits - 1)
    n, blocks = scales.shape
    middle = np.full((n, blocks), 1 << (scheme.bits - 1), np.int16)
    if zero_points is not None:
        middle = (_nibbles(zero_points) if scheme.bits == 4 else zero_points)[:, :blocks].astype(np.int16)
    numbers = numbers.reshape(n, blocks, scheme.block_size) - middle[:, :, None]
    return np.asarray((numbers.astype(np.float32) * wide[:, :, None]).reshape(n, blocks * scheme.block_size))


def _nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def _check_outputs(
    scheme: Scheme,
    shape: tuple[int, int],
    outputs: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    row_start: int,
    row_step: int,
    column_start: int,
) -> None:
    (n, k), (codes, scales, zero_points) = shape, outputs
    square = scheme.kind == "fp8" and scheme.block_size > 0
    if row_step < 1 or row_start < 0 or codes.ndim != 2 or row_start + row_step * (n - 1) >= codes.shape[0]:
        raise ValueError(f"rows {row_start} + {row_step} * (0..{n - 1}) are outside codes of shape {list(codes.shape)}")
    if square and (row_step != 1 or row_start % FP8_BLOCK):
        raise ValueError(f"blocks of {FP8_BLOCK}x{FP8_BLOCK} cannot start at row {row_start} with step {row_step}")
    rows, columns = codes.shape[0], codes.shape[1] * 8 // scheme.bits if scheme.kind != "fp8" else k
    if column_start < 0 or column_start % (scheme.block_size or 1) or column_start + k > columns:
        raise ValueError(f"columns {column_start} to {column_start + k} are not whole blocks of {columns} columns")
    wanted = [
        ("codes", codes, scheme.codes_shape(rows, columns), scheme.codes_dtype),
        ("scales", scales, scheme.scales_shape(rows, columns), np.dtype(scheme.scale_dtype)),
    ]
    zeros_shape = scheme.zero_points_shape(rows, columns)
    if (zeros_shape is None) != (zero_points is None):
        raise ValueError(f"{scheme.name} has {'no' if zeros_shape is None else 'need of'} zero points")
    if zeros_shape is not None and zero_points is not None:
        wanted.append(("zero points", zero_points, zeros_shape, np.dtype(np.uint8)))
    for name, array, expected, dtype in wanted:
        same_type = array.dtype == dtype or (scheme.kind == "fp8" and name == "codes" and array.dtype == np.uint8)
        if array.shape != expected or not same_type:
            raise ValueError(f"{name} are {array.dtype} {list(array.shape)}, not {dtype} {list(expected)}")
        if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
            raise ValueError(f"{name} are not a writeable, aligned C-contiguous array")


def _flat_bits(source: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the source's bits as a flat array, and the distance between its rows in elements."""
    size = source.itemsize
    rows, columns = source.shape
    step = source.strides[0] if rows > 1 else columns * size
    if (columns > 1 and source.strides[1] != size) or step < columns * size or step % size or not source.flags.aligned:
        raise ValueError(f"the last axis of the source is not contiguous (strides {source.strides})")
    stride = step // size
    bits = source.view(np.uint16 if size == 2 else np.uint32)
    return as_strided(bits, ((rows - 1) * stride + columns,), (size,), writeable=False), stride


def _scale_arrays(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (float32 scales, bits of others, their format). The array that is not used has no columns."""
    from l4export.quantization.kernels import BFLOAT16, FLOAT16, FLOAT32

    rows = scales.shape[0]
    if scales.dtype == np.float32:
        return scales, np.empty((rows, 0), np.uint16), FLOAT32
    formats = {np.dtype(np.float16): FLOAT16, np.dtype(ml_dtypes.bfloat16): BFLOAT16}
    return np.empty((rows, 0), np.float32), scales.view(np.uint16), formats[scales.dtype]


def _explain(source: np.ndarray, n: int, k: int, transposed: bool, scale_dtype: str) -> None:
    """Raise the error for a matrix that a kernel could not quantise near element (n, k) of the result."""
    step = max(1, (1 << 20) // source.shape[1])
    for start in range(0, source.shape[0], step):
        found = np.argwhere(~np.isfinite(source[start : start + step].astype(np.float32)))
        if found.size:
            row, column = start + int(found[0][0]), int(found[0][1])
            raise ValueError(f"weight at (row {row}, column {column}) is {float(source[row, column])}")
    row, column = (k, n) if transposed else (n, k)
    raise ValueError(f"the weights from (row {row}, column {column}) on are too large for {scale_dtype} scales")
