"""The compiled quantisation kernels: one pass over the source, in pieces that stay in the cache.

The kernels take the source as its bits (uint16 for bfloat16 and float16, uint32 for float32), flat, with the distance
`stride` between rows. `transposed` means that the source is [K, N]. They release the GIL and compile on first use; the
machine code is cached on disk. Everything compiled is in this one file, because Numba's cache watches only the file of
the function that it stores. Helpers take whole arrays and offsets and do many blocks at a time, because slices and
arguments cost atomic reference counts; they index with `np.uintp`, because signed indices may be negative, which keeps
loops from being vectorised.

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
_TILE = 1 << 17  # elements of a [K, N] source that are worked on at a time
_FP8_TILE_N = 64  # columns of a [K, N] source for fp8: whole cache lines
_PAD = 32  # elements between tile rows, so that a column of the tile does not fall on the same few cache sets
_BLOCK = 128  # square fp8 block

_INFINITE = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST = np.float32(2.0**-126)
_MAGIC = np.float32(1.5 * 2.0**23)  # x + _MAGIC holds round(x) in its low bits, for |x| < 2^22
_MAGIC_BITS = np.int32(0x4B400000)
_FRACTIONS = np.array([1, 0.93, 0.86, 0.79], np.float32)  # of a scale, that are tried
_ZERO, _ONE = np.int64(0), np.int64(1)  # Numba compiles a helper anew for each number that is written as an argument


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
def _widen(source: Any, at: int, half: bool, bits: Any, to: int, length: int) -> None:
    """`bits[to : to + length]` = the float32 bits of the source's elements from `at` on."""
    if source.itemsize == 4:
        for i in range(length):
            bits[np.uintp(to + i)] = np.uint32(source[np.uintp(at + i)])
    elif half:
        for i in range(length):
            h = np.uint32(source[np.uintp(at + i)])
            magnitude = np.uint32(h & np.uint32(0x7FFF))
            normal = np.uint32((magnitude << np.uint32(13)) + np.uint32(112 << 23))
            small = _as_bits(np.float32(np.int32(magnitude)) * np.float32(2.0**-24))
            value = normal if magnitude >= np.uint32(0x400) else small
            value = _INFINITE if magnitude >= np.uint32(0x7C00) else value
            bits[np.uintp(to + i)] = value | ((h & np.uint32(0x8000)) << np.uint32(16))
    else:
        for i in range(length):
            bits[np.uintp(to + i)] = np.uint32(source[np.uintp(at + i)]) << np.uint32(16)


@_jit
def _ends(bits: Any, at: int, length: int) -> Any:
    """The largest of the bits as signed numbers (0 if all are negative) and as unsigned ones."""
    signed, unsigned = np.int32(0), np.uint32(0)
    for i in range(length):
        value = bits[np.uintp(at + i)]
        signed = np.int32(value) if np.int32(value) > signed else signed
        unsigned = value if value > unsigned else unsigned
    return np.uint32(signed), np.uint32(unsigned)


@_jit
def _first(bits: Any, at: int, step: int, magnitude: Any) -> Any:
    """The first element of that magnitude, from `at` on."""
    while np.uint32(bits[np.uintp(at)] & _MAGNITUDE) != magnitude:
        at += step
    return _as_float(bits[np.uintp(at)])


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
def _settle(scale: np.float32, half: bool, positive: bool) -> Any:
    """A scale as it is stored (rounded to float16 if `half`), its float16 bits, and its inverse."""
    code = np.uint16(0)
    if half:
        scale, code = _to_float16(scale)
    if abs(scale) < _SMALLEST:
        return np.float32(positive), np.uint16(0x3C00 if positive else 0), np.float32(0)
    return scale, code, np.float32(1) / scale


@_jit
def _fit(
    bits: Any, at: int, step: int, block: int, scale: np.float32, low: np.float32, top: int, symmetric: bool,
    half: bool, positive: bool,
) -> Any:  # fmt: skip
    """The one of a few fractions of a block's scale that makes the sum of squared errors least."""
    best, least = scale, np.float32(np.inf)
    for f in range(len(_FRACTIONS)):
        tried = scale * _FRACTIONS[f]
        settled, _, inverse = _settle(tried, half, positive)
        zero = np.float32((top + 1) // 2)
        if not symmetric:
            zero = min(max(np.rint(low * inverse), np.float32(0)), np.float32(top))
        error = np.float32(0)
        for i in range(block):
            value = _as_float(bits[np.uintp(at + i * step)])
            code = min(max(np.rint(value * inverse) + zero, np.float32(0)), np.float32(top))
            away = value - (code - zero) * settled
            error += away * away
        if error < least:
            best, least = tried, error
    return best


@_jit
def _settle_blocks(
    bits: Any, apart: int, step: int, block: int, number: int, symmetric: bool,
    positive: bool, fitted: bool,
    signed: Any, unsigned: Any, wide: Any, narrow: Any, zero_points: Any, row: int, row_step: int, column: int,
    column_step: int, count: int, inverse: Any, shift: Any,
) -> int:  # fmt: skip
    """Stores scales and zero points of `count` blocks, whose ends (`_ends`) are `signed` and `unsigned`.

    The blocks begin `apart` from one another in `bits`, their elements are `step` apart. Sets the inverses, and what
    `_code` adds. Returns -1, or the first block that could not be done.
    """
    middle, top = np.int32(1 << (number - 1)), np.int32((1 << number) - 1)
    for index in range(count):
        b = np.uintp(index)
        high = signed[b]  # the magnitudes of the largest and the smallest element
        low = np.uint32(unsigned[b] & _MAGNITUDE) if unsigned[b] > _MAGNITUDE else np.uint32(0)
        if high >= _INFINITE or low >= _INFINITE:
            return index
        if positive:
            scale = _as_float(np.uint32(max(high, low))) / np.float32(middle - 1)
        elif symmetric:
            extreme = _as_float(high) if high > low else -_as_float(low)
            if high == low:
                extreme = _first(bits, index * apart, step, high)
            scale = extreme / np.float32(-middle)
        else:
            span = np.float64(_as_float(high)) + np.float64(_as_float(low))
            scale = np.float32(span / np.float64(top))
        if fitted:
            half = wide.size == 0
            scale = _fit(bits, index * apart, step, block, scale, _as_float(low), top, symmetric, half, positive)
        scale, code, inverse[b] = _settle(scale, wide.size == 0, positive)
        if abs(scale) == np.inf:
            return index
        at_row, at_column = np.uintp(row + index * row_step), np.uintp(column + index * column_step)
        if wide.size == 0:
            narrow[at_row, at_column] = code
        else:
            wide[at_row, at_column] = scale
        zero = middle
        if not symmetric:
            zero = np.int32(min(max(np.int32(np.rint(_as_float(low) * inverse[b])), np.int32(0)), top))
            byte, place = (at_column * np.uintp(number)) >> np.uintp(3), (at_column * np.uintp(number)) & np.uintp(7)
            held = zero_points[at_row, byte] if place else np.uint8(0)
            zero_points[at_row, byte] = held | np.uint8(np.uint32(zero) << place)
        shift[b] = np.int32(zero - _MAGIC_BITS)
    return -1


@_jit
def _code(value: Any, inverse: Any, shift: Any, top: Any, flip: Any) -> Any:
    """Of an element, given its bits."""
    code = np.int32(np.int32(_as_bits(_as_float(value) * inverse + _MAGIC)) + shift)
    code = code if code > np.int32(0) else np.int32(0)
    return np.uint32(code if code < top else top) ^ flip


def _quantize_rows(
    source: Any, half: bool, stride: int, n: int, k: int, number: int, block: int, symmetric: bool,
    positive: bool, fitted: bool,
    codes: Any, wide: Any, narrow: Any, zero_points: Any, row_start: int, row_step: int, column_start: int,
) -> int:  # fmt: skip
    """Blockwise 4 and 8 bits of an [N, K] source."""
    top = np.int32((1 << number) - 1)
    flip = np.uint32(1 << (number - 1)) if positive else np.uint32(0)  # of the upper bit: two's complement
    bits = np.empty(_ROW_PIECE, np.uint32)
    pairs = bits.view(np.uint64)
    signed, unsigned = np.empty(_ROW_PIECE // block, np.uint32), np.empty(_ROW_PIECE // block, np.uint32)
    inverse, shift = np.empty(_ROW_PIECE // block, np.float32), np.empty(_ROW_PIECE // block, np.int32)
    for r in range(n):
        row = row_start + row_step * r
        for start in range(0, k, _ROW_PIECE):
            length, column = min(_ROW_PIECE, k - start), column_start + start
            _widen(source, r * stride + start, half, bits, _ZERO, length)
            for b in range(length // block):
                signed[b], unsigned[b] = _ends(bits, b * block, block)
            failed: int = _settle_blocks(
                bits, block, _ONE, block, number, symmetric, positive, fitted, signed, unsigned,
                wide, narrow, zero_points, row, _ZERO, column // block, _ONE, length // block, inverse, shift,
            )  # fmt: skip
            if failed >= 0:
                return r * k + start + failed * block
            for b in range(length // block):
                for i in range(b * block, (b + 1) * block):
                    bits[np.uintp(i)] = _code(bits[np.uintp(i)], inverse[b], shift[b], top, flip)
            if number == 4:
                for i in range(length >> 1):
                    pair = np.uint8(pairs[i] | (pairs[i] >> np.uint64(28)))
                    codes[np.uintp(row), np.uintp((column >> 1) + i)] = pair
            else:
                for i in range(length):
                    codes[np.uintp(row), np.uintp(column + i)] = np.uint8(bits[i])
    return -1


def _quantize_columns(
    source: Any, half: bool, stride: int, n: int, k: int, number: int, block: int, symmetric: bool,
    positive: bool, fitted: bool,
    words: Any, wide: Any, narrow: Any, zero_points: Any, row_start: int, row_step: int, column_start: int,
) -> int:  # fmt: skip
    """Blockwise 4 and 8 bits of a [K, N] source; `words` are the codes as uint32.

    Columns of the source lie side by side in vectors all the way to the words of codes; only words are transposed.
    """
    top = np.int32((1 << number) - 1)
    flip = np.uint32(1 << (number - 1)) if positive else np.uint32(0)  # of the upper bit: two's complement
    count = 32 // number  # codes of a word
    width = min(n, _TILE // block)
    pitch = width + _PAD
    bits = np.empty(block * pitch, np.uint32)
    packed = np.empty(block // count * pitch, np.uint32)
    signed, unsigned = np.empty(width, np.uint32), np.empty(width, np.uint32)
    inverse, shift = np.empty(width, np.float32), np.empty(width, np.int32)
    for k0 in range(0, k, block):
        for n0 in range(0, n, width):
            lanes, row, column = min(width, n - n0), row_start + row_step * n0, column_start + k0
            for r in range(lanes):
                signed[r] = unsigned[r] = 0
            for i in range(block):
                at = i * pitch
                _widen(source, (k0 + i) * stride + n0, half, bits, at, lanes)
                for r in range(lanes):
                    value = bits[np.uintp(at + r)]
                    signed[r] = max(np.int32(value), np.int32(signed[r]))
                    unsigned[r] = max(value, unsigned[r])
            failed: int = _settle_blocks(
                bits, _ONE, pitch, block, number, symmetric, positive, fitted, signed, unsigned,
                wide, narrow, zero_points, row, row_step, column // block, _ZERO, lanes, inverse, shift,
            )  # fmt: skip
            if failed >= 0:
                return (n0 + failed) * k + k0
            for i in range(block):
                at, word = i * pitch, i // count * pitch
                place = np.uint32(i % count * number) & np.uint32(31)  # so that 32-bit shifts will do
                for r in range(lanes):
                    code = np.uint32(_code(bits[np.uintp(at + r)], inverse[r], shift[r], top, flip) << place)
                    packed[np.uintp(word + r)] = packed[np.uintp(word + r)] | code if place else code
            for r in range(lanes):
                for word in range(block // count):
                    at = word * pitch + r
                    words[np.uintp(row + row_step * r), np.uintp(column // count + word)] = packed[np.uintp(at)]
    return -1


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
    tile_n = _BLOCK if square else (_FP8_TILE_N if transposed else 1)
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
                        _widen(tile, r * width + i, half, bits, _ZERO, count)
                        signed, unsigned = _ends(bits, _ZERO, count)
                        largest = max(largest, signed, np.uint32(unsigned & _MAGNITUDE))
                if largest >= _INFINITE:
                    return (n0 + first) * k + k0
                row = row_start + row_step * (n0 + first)
                scale = _as_float(largest) / np.float32(448)
                scale, code, inverse = _settle(scale, wide.size == 0, positive)
                if scale == np.inf:
                    return (n0 + first) * k + k0
                at_row, at_column = np.uintp(row // _BLOCK if square else row), np.uintp(k0 // _BLOCK if square else 0)
                if wide.size == 0:
                    narrow[at_row, at_column] = code
                else:
                    wide[at_row, at_column] = scale
                for r in range(first, first + group):
                    for i in range(0, length, piece):
                        count = min(piece, length - i)
                        _widen(tile, r * width + i, half, bits, _ZERO, count)
                        _encode_fp8(bits, count, inverse, codes, row_start + row_step * (n0 + r), k0 + i)
    return -1


_lock = threading.Lock()


def kernel(name: str, itemsize: int) -> Callable[..., int]:
    """The compiled kernel `rows`, `columns` or `fp8` for sources of 2 or 4 bytes; compiled or loaded on first use."""
    with _lock:
        return _compiled(name, itemsize)


@functools.cache
def _compiled(name: str, itemsize: int) -> Callable[..., int]:
    i, flag = types.int64, types.boolean
    source = types.Array(types.uint16 if itemsize == 2 else types.uint32, 1, "C", readonly=True)
    u8, u16, u32, f32 = (types.Array(t, 2, "C") for t in (types.uint8, types.uint16, types.uint32, types.float32))
    function: Any
    if name == "fp8":
        signature = types.int64(source, flag, i, flag, i, i, flag, flag, u8, f32, u16, i, i)
        function = _quantize_fp8
    else:
        codes, function = (u32, _quantize_columns) if name == "columns" else (u8, _quantize_rows)
        signature = types.int64(source, flag, i, i, i, i, i, flag, flag, flag, codes, f32, u16, u8, i, i, i)
    compiled: Callable[..., int] = _jit(function, signature)
    return compiled
