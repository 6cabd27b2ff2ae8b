"""The compiled quantisation kernels: one pass over the source, in pieces that stay in the cache.

Both kernels take the source as its bits (uint16 for bfloat16 and float16, uint32 for float32), flat, with the distance
`stride` between rows. `transposed` means that the source is [K, N]. They release the GIL and compile on first use; the
machine code is cached on disk. Everything compiled is in this one file, because Numba's cache watches only the file of
the function that it stores. Helpers take whole arrays and offsets, because slices cost atomic reference counts in inner
loops, and index with `np.uintp`, because signed indices may be negative, which keeps loops from being vectorised.

A kernel returns -1, or `row * k + column` (of the result) of the first element of a piece that it could not quantise.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

__all__ = ["kernel"]

_ROW_PIECE = 2048  # elements of a row that are worked on at a time
_TILE_K, _TILE_N = 256, 64  # of a transposed source: 64 columns are whole cache lines
_PAD = 32  # elements between tile rows, so that a column of the tile does not fall on the same few cache sets
_BLOCK = 128  # square fp8 block

_INFINITE = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST = np.float32(2.0**-126)
_MAGIC = np.float32(1.5 * 2.0**23)  # x + _MAGIC holds round(x) in its low bits, for |x| < 2^22
_MAGIC_BITS = np.int32(0x4B400000)


def _jit(function: Callable[..., Any], signature: Any = None) -> Any:
    try:
        return numba.njit(signature, nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # nowhere to keep a cache: compile in each process
        return numba.njit(signature, nogil=True, error_model="numpy")(function)


def _bitcast(source: Any, target: Any) -> Any:
    """A function (for compiled code only) that reads the bits of one 32-bit type as another."""

    def typed(context: Any, value: Any) -> Any:
        def generate(target_context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], target_context.get_value_type(target))

        return (target(source), generate) if value == source else None

    return intrinsic(typed)


_as_float = _bitcast(types.uint32, types.float32)
_as_bits = _bitcast(types.float32, types.uint32)


@_jit
def _widen(source: Any, at: int, half: bool, bits: Any, length: int) -> None:
    """`bits[:length]` = the float32 bits of the elements from `at` on."""
    if source.itemsize == 4:
        for i in range(length):
            bits[i] = np.uint32(source[np.uintp(at + i)])
    elif half:
        for i in range(length):
            h = np.uint32(source[np.uintp(at + i)])
            magnitude = np.uint32(h & np.uint32(0x7FFF))
            normal = np.uint32((magnitude << np.uint32(13)) + np.uint32(112 << 23))
            small = _as_bits(np.float32(np.int32(magnitude)) * np.float32(2.0**-24))
            value = normal if magnitude >= np.uint32(0x400) else small
            value = _INFINITE if magnitude >= np.uint32(0x7C00) else value
            bits[i] = value | ((h & np.uint32(0x8000)) << np.uint32(16))
    else:
        for i in range(length):
            bits[i] = np.uint32(source[np.uintp(at + i)]) << np.uint32(16)


@_jit
def _ends(bits: Any, at: int, length: int) -> Any:
    """Bits of the magnitudes of the largest positive and the most negative element (0 if there is none)."""
    largest, unsigned = np.int32(0), np.uint32(0)
    for i in range(length):
        value = bits[np.uintp(at + i)]
        largest = np.int32(value) if np.int32(value) > largest else largest
        unsigned = value if value > unsigned else unsigned
    return np.uint32(largest), (np.uint32(unsigned & _MAGNITUDE) if unsigned > _MAGNITUDE else np.uint32(0))


@_jit
def _extreme(bits: Any, at: int, length: int, positive: Any, negative: Any) -> Any:
    """The signed extreme of a block, given the magnitudes of its ends: of several, the first."""
    if positive == negative:
        for i in range(length):
            value = bits[np.uintp(at + i)]
            if np.uint32(value & _MAGNITUDE) == positive:
                return _as_float(value)
    return _as_float(positive) if positive > negative else -_as_float(negative)


@_jit
def _to_float16(scale: np.float32) -> Any:
    """Rounded to float16: the value, and its float16 bits; infinite when float16 cannot hold it."""
    bits = _as_bits(scale)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    magnitude = np.uint32(bits & _MAGNITUDE)
    if magnitude < np.uint32(0x38800000):  # below 2^-14: multiples of 2^-24
        count = np.uint32(np.rint(abs(scale) * np.float32(2.0**24)))
        value = np.float32(np.int32(count)) * np.float32(2.0**-24)
        return (-value if sign else value), np.uint16(sign | count)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    magnitude = np.uint32((magnitude + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000))
    if magnitude >= np.uint32(0x47800000):
        return np.float32(np.inf), np.uint16(sign | np.uint32(0x7C00))
    value = _as_float(magnitude)
    return (-value if sign else value), np.uint16(sign | ((magnitude - np.uint32(112 << 23)) >> np.uint32(13)))


@_jit
def _settle(scale: np.float32, positive: bool, wide: Any, narrow: Any, row: int, column: int) -> Any:
    """Rounds and stores a scale; returns it with its inverse. `narrow` (float16 bits) is used if `wide` is empty."""
    code = np.uint16(0)
    if wide.size == 0:
        scale, code = _to_float16(scale)
    if abs(scale) < _SMALLEST:
        scale, code, inverse = np.float32(positive), np.uint16(0x3C00 if positive else 0), np.float32(0)
    else:
        inverse = np.float32(1) / scale
    if wide.size == 0:
        narrow[np.uintp(row), np.uintp(column)] = code
    else:
        wide[np.uintp(row), np.uintp(column)] = scale
    return scale, inverse


@_jit
def _round_blocks(
    bits: Any, length: int, number: int, block: int, symmetric: bool, above_zero: bool,
    wide: Any, narrow: Any, zero_points: Any, row: int, first: int,
) -> bool:  # fmt: skip
    """Scales of the blocks in `bits` (block `first` of the row onward), whose elements become their codes in place."""
    middle = np.int32(1 << (number - 1))
    top = np.int32((1 << number) - 1)
    flip = middle if above_zero else np.int32(0)  # of the upper bit: two's complement
    for b in range(length // block):
        at = b * block
        positive, negative = _ends(bits, at, block)
        if positive >= _INFINITE or negative >= _INFINITE:
            return False
        offset = middle
        if above_zero:
            scale = _as_float(np.uint32(max(positive, negative))) / np.float32(middle - 1)
        elif symmetric:
            scale = _extreme(bits, at, block, positive, negative) / np.float32(-middle)
        else:
            span = np.float64(_as_float(positive)) + np.float64(_as_float(negative))
            scale = np.float32(span / np.float64(top))
        scale, inverse = _settle(scale, above_zero, wide, narrow, row, first + b)
        if abs(scale) == np.inf:
            return False
        if not symmetric:
            down = _as_float(negative) * inverse
            offset = np.int32(min(max(np.int32(np.rint(down)), np.int32(0)), top))
            if number == 8:
                zero_points[row, first + b] = offset
            elif (first + b) & 1:
                zero_points[row, (first + b) >> 1] |= np.uint8(offset << np.int32(4))
            else:
                zero_points[row, (first + b) >> 1] = offset
        shift = np.int32(offset - _MAGIC_BITS)
        for i in range(block):
            product = _as_float(bits[np.uintp(at + i)]) * inverse
            code = np.int32(np.int32(_as_bits(product + _MAGIC)) + shift)
            code = code if code > np.int32(0) else np.int32(0)
            bits[np.uintp(at + i)] = np.uint32((code if code < top else top) ^ flip)
    return True


@_jit
def _pack(values: Any, pairs: Any, length: int, number: int, codes: Any, row: int, start: int) -> None:
    """Writes `values[:length]`, which are elements `start` and following of the row; `pairs` views them as uint64."""
    if number == 4:
        for i in range(length >> 1):
            codes[np.uintp(row), np.uintp((start >> 1) + i)] = np.uint8(pairs[i] | (pairs[i] >> np.uint64(28)))
    else:
        for i in range(length):
            codes[np.uintp(row), np.uintp(start + i)] = np.uint8(values[i])


@_jit
def _gather(
    source: Any, start: int, stride: int, transposed: bool, rows: int, length: int, tile: Any, width: int
) -> None:
    """`tile[r * width + i]` = element (r, i) in the result's order, counted from `start` in the source."""
    if transposed:
        for i in range(length):
            for r in range(rows):
                tile[np.uintp(r * width + i)] = source[np.uintp(start + i * stride + r)]
    else:
        for r in range(rows):
            for i in range(length):
                tile[np.uintp(r * width + i)] = source[np.uintp(start + r * stride + i)]


def _quantize_int(
    source: Any, half: bool, stride: int, transposed: bool, n: int, k: int, number: int, block: int, symmetric: bool,
    positive: bool, codes: Any, wide: Any, narrow: Any, zero_points: Any, row_start: int, row_step: int,
) -> int:  # fmt: skip
    """Blockwise 4 and 8 bits."""
    tile_n, tile_k = (_TILE_N, _TILE_K) if transposed else (1, _ROW_PIECE)
    width = tile_k + _PAD
    tile = np.empty(tile_n * width, source.dtype)
    bits = np.empty(tile_k, np.uint32)
    pairs = bits.view(np.uint64)
    for k0 in range(0, k, tile_k if transposed else k):
        for n0 in range(0, n, tile_n):
            k1 = min(k0 + tile_k, k) if transposed else k
            rows = min(tile_n, n - n0)
            if transposed:
                _gather(source, k0 * stride + n0, stride, True, rows, k1 - k0, tile, width)
            for r in range(rows):
                out = row_start + row_step * (n0 + r)
                for start in range(k0, k1, tile_k):
                    length = min(tile_k, k1 - start)
                    if transposed:
                        _widen(tile, r * width, half, bits, length)
                    else:
                        _widen(source, (n0 + r) * stride + start, half, bits, length)
                    good = _round_blocks(
                        bits, length, number, block, symmetric, positive,
                        wide, narrow, zero_points, out, start // block,
                    )  # fmt: skip
                    if not good:
                        return (n0 + r) * k + start
                    _pack(bits, pairs, length, number, codes, out, start)
    return -1


@_jit
def _encode_fp8(bits: Any, length: int, inverse: np.float32, codes: Any, row: int, start: int) -> None:
    for i in range(length):
        value = _as_float(bits[i]) * inverse
        sign = (_as_bits(value) >> np.uint32(24)) & np.uint32(0x80)
        magnitude = np.float32(min(abs(value), np.float32(448)))
        pattern = _as_bits(magnitude)
        normal = (pattern + np.uint32(0x7FFFF) + ((pattern >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
        # below 2^-6: multiples of 2^-9, which is the last bit of 1.5 * 2^14
        small = np.uint32(_as_bits(magnitude + np.float32(24576)) - np.uint32(0x46C00000))
        code = np.uint32(normal - np.uint32(960)) if magnitude >= np.float32(2.0**-6) else small
        codes[np.uintp(row), np.uintp(start + i)] = np.uint8(code | sign)


def _quantize_fp8(
    source: Any, half: bool, stride: int, transposed: bool, n: int, k: int, square: bool,
    positive: bool, codes: Any, wide: Any, narrow: Any, row_start: int, row_step: int,
) -> int:  # fmt: skip
    """E4M3FN: one scale for a row, or for a square block of result rows (then `row_step` is 1)."""
    tile_n = _BLOCK if square else (_TILE_N if transposed else 1)
    tile_k = _BLOCK if square else k
    width = (tile_k + 63) // 64 * 64 + _PAD
    tile = np.empty(tile_n * width, source.dtype)
    piece = min(tile_k, _ROW_PIECE)
    bits = np.empty(piece, np.uint32)
    for k0 in range(0, k, tile_k):
        for n0 in range(0, n, tile_n):
            rows, length = min(tile_n, n - n0), min(tile_k, k - k0)
            start = k0 * stride + n0 if transposed else n0 * stride + k0
            _gather(source, start, stride, transposed, rows, length, tile, width)
            group = rows if square else 1  # rows that share a scale
            for first in range(0, rows, group):
                largest = np.uint32(0)
                for r in range(first, first + group):
                    for i in range(0, length, piece):
                        count = min(piece, length - i)
                        _widen(tile, r * width + i, half, bits, count)
                        above, below = _ends(bits, 0, count)
                        largest = np.uint32(max(largest, above, below))
                if largest >= _INFINITE:
                    return (n0 + first) * k + k0
                row = row_start + row_step * (n0 + first)
                scale = _as_float(largest) / np.float32(448)
                scale, inverse = _settle(
                    scale, positive, wide, narrow, row // _BLOCK if square else row, k0 // _BLOCK if square else 0
                )
                if scale == np.inf:
                    return (n0 + first) * k + k0
                for r in range(first, first + group):
                    for i in range(0, length, piece):
                        count = min(piece, length - i)
                        _widen(tile, r * width + i, half, bits, count)
                        _encode_fp8(bits, count, inverse, codes, row_start + row_step * (n0 + r), k0 + i)
    return -1


_lock = threading.Lock()


def kernel(name: str, itemsize: int) -> Callable[..., int]:
    """The compiled kernel `int` or `fp8` for sources of 2 or 4 bytes; compiles (or loads) it on first use."""
    with _lock:
        return _compiled(name, itemsize)


@functools.cache
def _compiled(name: str, itemsize: int) -> Callable[..., int]:
    i, flag = types.int64, types.boolean
    source = types.Array(types.uint16 if itemsize == 2 else types.uint32, 1, "C", readonly=True)
    u8, u16, f32 = (types.Array(t, 2, "C") for t in (types.uint8, types.uint16, types.float32))
    if name == "int":
        signature = types.int64(source, flag, i, flag, i, i, i, i, flag, flag, u8, f32, u16, u8, i, i)
        function: Any = _quantize_int
    else:
        signature = types.int64(source, flag, i, flag, i, i, flag, flag, u8, f32, u16, i, i)
        function = _quantize_fp8
    compiled: Callable[..., int] = _jit(function, signature)
    return compiled
