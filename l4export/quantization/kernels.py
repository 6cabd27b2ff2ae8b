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
_TILE = 1 << 17  # elements of a [K, N] source that are worked on at a time
_TILE_N = 64  # the same for fp8: 64 columns are whole cache lines
_PAD = 32  # elements between tile rows, so that a column of the tile does not fall on the same few cache sets
_BLOCK = 128  # square fp8 block

_INFINITE = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST = np.float32(2.0**-126)
_MAGIC = np.float32(1.5 * 2.0**23)  # x + _MAGIC holds round(x) in its low bits, for |x| < 2^22
_MAGIC_BITS = np.int32(0x4B400000)


def _jit(function: Callable[..., Any], signature: Any = None) -> Any:
    options={} if signature else dict(forceinline=True)
    try:
        return numba.njit(signature, nogil=True, error_model="numpy", cache=True,**options)(function)
    except RuntimeError:  # nowhere to keep a cache: compile in each process
        return numba.njit(signature, nogil=True, error_model="numpy",**options)(function)


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
    """Bits of the magnitudes of the largest positive and the most negative element (0 if there is none)."""
    largest, unsigned = np.int32(0), np.uint32(0)
    for i in range(length):
        value = bits[np.uintp(at + i)]
        largest = np.int32(value) if np.int32(value) > largest else largest
        unsigned = value if value > unsigned else unsigned
    return np.uint32(largest), _negative(unsigned)


@_jit
def _negative(unsigned: Any) -> Any:
    """The magnitude of a block's most negative element, given the largest of the bits as unsigned numbers."""
    return np.uint32(unsigned & _MAGNITUDE) if unsigned > _MAGNITUDE else np.uint32(0)


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
def _settle(scale: np.float32, half: bool) -> Any:
    """A scale as it is stored (rounded to float16 if `half`), its float16 bits, and its inverse."""
    code = np.uint16(0)
    if half:
        scale, code = _to_float16(scale)
    if abs(scale) < _SMALLEST:
        return np.float32(0), np.uint16(0), np.float32(0)
    return scale, code, np.float32(1) / scale


@_jit
def _settle_blocks(
    bits: Any, apart: int, step: int, block: int, number: int, symmetric: bool, positive: Any, negative: Any,
    wide: Any, narrow: Any, zero_points: Any, row: int, row_step: int, column: int, column_step: int,
    count: int, inverse: Any, shift: Any,
) -> int:  # fmt: skip
    """Stores the scales and zero points of `count` blocks, given the magnitudes of their ends.

    The blocks begin `apart` from one another in `bits`, their elements are `step` apart. Sets the inverses, and what
    `_code` adds. Returns -1, or the first block that could not be done.
    """
    middle, top = np.int32(1 << (number - 1)), np.int32((1 << number) - 1)
    for b in range(count):
        high, low = positive[np.uintp(b)], negative[np.uintp(b)]
        if high >= _INFINITE or low >= _INFINITE:
            return b
        scale = _as_float(high) if high > low else -_as_float(low)
        if not symmetric:
            scale = np.float32((np.float64(_as_float(high)) + np.float64(_as_float(low))) / np.float64(top))
        else:
            if high == low:  # of several extremes the first has the say
                for i in range(block):
                    value = bits[np.uintp(b * apart + i * step)]
                    if np.uint32(value & _MAGNITUDE) == high:
                        scale = _as_float(value)
                        break
            scale /= np.float32(-middle)
        scale, code, inverse[np.uintp(b)] = _settle(scale, wide.size == 0)
        if abs(scale) == np.inf:
            return b
        at_row, at_column = np.uintp(row + b * row_step), np.uintp(column + b * column_step)
        if wide.size == 0:
            narrow[at_row, at_column] = code
        else:
            wide[at_row, at_column] = scale
        zero = middle
        if not symmetric:
            zero = np.int32(min(max(np.int32(np.rint(_as_float(low) * inverse[np.uintp(b)])), np.int32(0)), top))
            if number == 8:
                zero_points[at_row, at_column] = zero
            elif at_column & np.uintp(1):
                zero_points[at_row, at_column >> np.uintp(1)] |= np.uint8(zero << np.int32(4))
            else:
                zero_points[at_row, at_column >> np.uintp(1)] = zero
        shift[np.uintp(b)] = np.int32(zero - _MAGIC_BITS)
    return -1


@_jit
def _code(value: Any, inverse: Any, shift: Any, top: Any) -> Any:
    """Of an element, given its bits."""
    code = np.int32(np.int32(_as_bits(_as_float(value) * inverse + _MAGIC)) + shift)
    code = code if code > np.int32(0) else np.int32(0)
    return np.uint32(code if code < top else top)


def _quantize_rows(
    source: Any, half: bool, stride: int, n: int, k: int, number: int, block: int, symmetric: bool,
    codes: Any, wide: Any, narrow: Any, zero_points: Any, row_start: int, row_step: int, column: int,
) -> int:  # fmt: skip
    """Blockwise 4 and 8 bits of an [N, K] source."""
    top = np.int32((1 << number) - 1)
    bits = np.empty(_ROW_PIECE, np.uint32)
    pairs = bits.view(np.uint64)
    positive, negative = np.empty(_ROW_PIECE // block, np.uint32), np.empty(_ROW_PIECE // block, np.uint32)
    inverse, shift = np.empty(_ROW_PIECE // block, np.float32), np.empty(_ROW_PIECE // block, np.int32)
    for r in range(n):
        row = row_start + row_step * r
        for start in range(0, k, _ROW_PIECE):
            length = min(_ROW_PIECE, k - start)
            _widen(source, r * stride + start, half, bits, 0, length)
            for b in range(length // block):
                positive[b], negative[b] = _ends(bits, b * block, block)
            failed = _settle_blocks(
                bits, block, 1, block, number, symmetric, positive, negative,
                wide, narrow, zero_points, row, 0, (column + start) // block, 1, length // block, inverse, shift,
            )  # fmt: skip
            if failed >= 0:
                return r * k + start + failed * block
            for b in range(length // block):
                for i in range(b * block, (b + 1) * block):
                    bits[np.uintp(i)] = _code(bits[np.uintp(i)], inverse[b], shift[b], top)
            if number == 4:
                for i in range(length >> 1):
                    codes[np.uintp(row), np.uintp(((column + start) >> 1) + i)] = np.uint8(pairs[i] | (pairs[i] >> np.uint64(28)))
            else:
                for i in range(length):
                    codes[np.uintp(row), np.uintp(column + start + i)] = np.uint8(bits[i])
    return -1


def _quantize_columns(
    source: Any, half: bool, stride: int, n: int, k: int, number: int, block: int, symmetric: bool,
    words: Any, wide: Any, narrow: Any, zero_points: Any, row_start: int, row_step: int, column: int,
) -> int:  # fmt: skip
    """Blockwise 4 and 8 bits of a [K, N] source; `words` are the codes as uint32.

    Columns lie side by side in vectors from the source to the words of their codes, and only those are transposed.
    """
    top = np.int32((1 << number) - 1)
    count = 32 // number  # codes of a word
    width = min(n, _TILE // block)  # columns side by side
    pitch = width + _PAD
    bits = np.empty(block * pitch, np.uint32)
    packed = np.empty(block // count * pitch, np.uint32)
    positive, negative = np.empty(width, np.uint32), np.empty(width, np.uint32)
    inverse, shift = np.empty(width, np.float32), np.empty(width, np.int32)
    for k0 in range(0, k, block):
        for n0 in range(0, n, width):
            lanes, row = min(width, n - n0), row_start + row_step * n0
            for r in range(lanes):
                positive[r] = negative[r] = 0
            for i in range(block):
                at = i * pitch
                _widen(source, (k0 + i) * stride + n0, half, bits, at, lanes)
                for r in range(lanes):
                    value = bits[np.uintp(at + r)]
                    positive[r] = max(np.int32(value), np.int32(positive[r]))
                    negative[r] = max(value, negative[r])
            for r in range(lanes):
                negative[r] = _negative(negative[r])
            failed = _settle_blocks(
                bits, 1, pitch, block, number, symmetric, positive, negative,
                wide, narrow, zero_points, row, row_step, (column + k0) // block, 0, lanes, inverse, shift,
            )  # fmt: skip
            if failed >= 0:
                return (n0 + failed) * k + k0
            for i in range(block):
                at, word, place = i * pitch, i // count * pitch, np.uint32(i % count * number)
                for r in range(lanes):
                    code = np.uint32(_code(bits[np.uintp(at + r)], inverse[r], shift[r], top) << (place & np.uint32(31)))
                    packed[np.uintp(word + r)] = (packed[np.uintp(word + r)] | code) if place else code
            for r in range(lanes):
                for word in range(block // count):
                    words[np.uintp(row + row_step * r), np.uintp((column + k0) // count + word)] = packed[np.uintp(word * pitch + r)]
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
    codes: Any, wide: Any, narrow: Any, row_start: int, row_step: int,
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
                        _widen(tile, r * width + i, half, bits, 0, count)
                        positive, negative = _ends(bits, 0, count)
                        largest = np.uint32(max(largest, positive, negative))
                if largest >= _INFINITE:
                    return (n0 + first) * k + k0
                row = row_start + row_step * (n0 + first)
                scale = _as_float(largest) / np.float32(448)
                scale, code, inverse = _settle(scale, wide.size == 0)
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
                        _widen(tile, r * width + i, half, bits, 0, count)
                        _encode_fp8(bits, count, inverse, codes, row_start + row_step * (n0 + r), k0 + i)
    return -1


_lock = threading.Lock()


def kernel(name: str, itemsize: int) -> Callable[..., int]:
    """The compiled kernel `rows`, `columns` or `fp8` for sources of 2 or 4 bytes; compiles (or loads) it on first use."""
    with _lock:
        return _compiled(name, itemsize)


@functools.cache
def _compiled(name: str, itemsize: int) -> Callable[..., int]:
    i, flag = types.int64, types.boolean
    source = types.Array(types.uint16 if itemsize == 2 else types.uint32, 1, "C", readonly=True)
    u8, u16, u32, f32 = (types.Array(t, 2, "C") for t in (types.uint8, types.uint16, types.uint32, types.float32))
    function: Any
    if name == "fp8":
        signature = types.int64(source, flag, i, flag, i, i, flag, u8, f32, u16, i, i)
        function = _quantize_fp8
    else:
        codes, function = (u32, _quantize_columns) if name == "columns" else (u8, _quantize_rows)
        signature = types.int64(source, flag, i, i, i, i, i, flag, codes, f32, u16, u8, i, i, i)
    compiled: Callable[..., int] = _jit(function, signature)
    return compiled
