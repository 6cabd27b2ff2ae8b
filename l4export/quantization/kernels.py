"""The compiled quantisation kernels. They make one pass over the source, in pieces that stay in the processor's cache.

The kernels take a `Source`, a `Format` and the `Outputs`. They release the GIL. They compile on first use, and the
machine code is cached on disk.

All of it is in this one file on purpose. Numba stores a function together with everything that it calls. It compiles
the function again when the file of that function changes, but not when the file of a function that it calls changes.
If the helpers were in another file, old machine code would stay in use after a change of theirs, and weights would be
wrong in silence.

Helpers take whole arrays and offsets and do many blocks at a time, because slices and arguments cost atomic reference
counts. They index with `np.uintp`, because signed indices may be negative, which keeps loops from being vectorised.

A kernel returns -1, or `row * k + column` (of the result) of the first element of a piece that it could not quantise.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from l4export.quantization.jit import check_compiled, jit

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "Format", "Outputs", "Source", "kernel"]

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # formats of scales

_ROW_PIECE = 2048  # elements of a row that are processed at a time
_TILE = 1 << 17  # elements of a [K, N] source that are processed at a time
_FP8_TILE_N = 64  # columns of a [K, N] source for fp8: whole cache lines
_PAD = 32  # elements between tile rows, so that a column of the tile does not fall into the same few cache sets
_BLOCK = 128  # square fp8 block

_INFINITE = np.uint32(0x7F800000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_SMALLEST = np.float32(2.0**-126)
_MAGIC = np.float32(1.5 * 2.0**23)  # x + _MAGIC holds round(x) in its low bits, for |x| < 2^22
_MAGIC_BITS = np.int32(0x4B400000)
_FRACTIONS = np.array([1, 0.93, 0.86, 0.79], np.float32)  # the fractions of a scale that are tried
_ZERO, _ONE = np.int64(0), np.int64(1)  # Numba compiles a helper again for each literal number that is an argument


class Source(NamedTuple):
    """A matrix to quantise: [n, k], or [k, n] for a kernel that takes it transposed."""

    bits: Any
    """A flat array: uint16 for bfloat16 and float16, uint32 for float32."""
    half: bool
    """Whether numbers of 16 bits are float16 (and not bfloat16)."""
    stride: int
    """The distance between rows, in elements."""
    n: int
    k: int


class Format(NamedTuple):
    """An integer scheme, as `l4export.quantization.schemes.Scheme` describes it."""

    number: int
    """The number of bits of a code: 4 or 8."""
    block: int
    """The number of elements that share a scale."""
    symmetric: bool
    positive: bool
    fitted: bool


class Outputs(NamedTuple):
    """Where results go. Row r goes to row `row_start + row_step * r`, and the first column to `column_start`."""

    codes: Any
    """uint8, or uint32 for words of codes if the source is transposed."""
    wide: Any
    """Scales in float32. One of `wide` and `narrow` is not used and has no columns."""
    narrow: Any
    """Scales as the bits of float16 or bfloat16."""
    scale_format: int
    """What scales are rounded to: `FLOAT32` (then they are `wide`), `FLOAT16` or `BFLOAT16`."""
    zero_points: Any
    row_start: int
    row_step: int
    column_start: int


class _Blocks(NamedTuple):
    """The blocks that are being processed: `apart` is from one block to the next in `bits`, `step` between elements."""

    bits: Any
    apart: int
    step: int
    signed: Any
    """For each block, the first of the two numbers that `_ends` finds."""
    unsigned: Any
    """For each block, the second of them."""
    scales: Any
    inverse: Any
    """The inverse of each block's scale as it is stored."""
    shift: Any
    """What `_code` adds."""


def _bitcast(source: Any, target: Any) -> Any:
    """Make a function, for compiled code only, that reads the bits of one 32-bit type as another."""

    def typed(context: Any, value: Any) -> Any:
        def generate(target_context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], target_context.get_value_type(target))

        return (target(source), generate) if value == source else None

    return intrinsic(typed)


_as_float = _bitcast(types.uint32, types.float32)
_as_bits = _bitcast(types.float32, types.uint32)


@jit
def _widen(source: Any, at: int, half: bool, bits: Any, to: int, length: int) -> None:
    """Set `bits[to : to + length]` to the float32 bits of the source's elements from `at` on."""
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


@jit
def _ends(bits: Any, at: int, length: int) -> Any:
    """Return the largest of the bits as signed numbers (0 if all are negative), and as unsigned numbers."""
    signed, unsigned = np.int32(0), np.uint32(0)
    for i in range(length):
        value = bits[np.uintp(at + i)]
        signed = np.int32(value) if np.int32(value) > signed else signed
        unsigned = value if value > unsigned else unsigned
    return np.uint32(signed), np.uint32(unsigned)


@jit
def _first(bits: Any, at: int, step: int, magnitude: Any) -> Any:
    """Return the first element with that magnitude, from `at` on."""
    while np.uint32(bits[np.uintp(at)] & _MAGNITUDE) != magnitude:
        at += step
    return _as_float(bits[np.uintp(at)])


@jit
def _to_float16(scale: np.float32) -> Any:
    """Round to float16. Returns the value (infinite if float16 cannot hold it) and its float16 bits."""
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


@jit
def _to_bfloat16(scale: np.float32) -> Any:
    """Round to bfloat16. Returns the value (infinite if bfloat16 cannot hold it) and its bfloat16 bits."""
    bits = _as_bits(scale)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    bits = np.uint32((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000))
    return _as_float(bits), np.uint16(bits >> np.uint32(16))


@jit
def _settle(scale: np.float32, scale_format: int, positive: bool) -> Any:
    """Return a scale as it is stored (rounded to its format), its bits if these are 16, and its inverse."""
    code, one = np.uint16(0), np.uint16(0x3F80)
    if scale_format == FLOAT16:
        scale, code = _to_float16(scale)
        one = np.uint16(0x3C00)
    elif scale_format == BFLOAT16:
        scale, code = _to_bfloat16(scale)
    if abs(scale) < _SMALLEST:
        return np.float32(positive), np.uint16(one if positive else 0), np.float32(0)
    return scale, code, np.float32(1) / scale


@jit
def _lowest(unsigned: Any) -> Any:
    """Return the magnitude of the smallest element of a block as bits, or 0 if none is negative."""
    return np.uint32(unsigned & _MAGNITUDE) if unsigned > _MAGNITUDE else np.uint32(0)


@jit
def _fit(bits: Any, at: int, step: int, scale: np.float32, low: np.float32, form: Format, scale_format: int) -> Any:
    """Return the fraction of a block's scale, among those tried, with the smallest sum of squared errors."""
    number, block, symmetric, positive, _ = form
    top = (1 << number) - 1
    best, least = scale, np.float32(np.inf)
    for f in range(len(_FRACTIONS)):
        tried = scale * _FRACTIONS[f]
        settled, _, inverse = _settle(tried, scale_format, positive)
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


@jit
def _find_scales(form: Format, blocks: _Blocks, scale_format: int, count: int) -> int:
    """Set the `scales` of the first `count` blocks, whose ends are known, for scales that are stored in a format.

    Returns -1, or the first block with an element that is not finite.
    """
    bits, apart, step, signed, unsigned, scales, _, _ = blocks
    number, _, symmetric, positive, fitted = form
    middle, top = np.int32(1 << (number - 1)), np.int32((1 << number) - 1)
    for index in range(count):
        b = np.uintp(index)
        high, low = signed[b], _lowest(unsigned[b])
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
            scale = _fit(bits, index * apart, step, scale, _as_float(low), form, scale_format)
        scales[b] = scale
    return -1


@jit
def _store_scales(
    form: Format, blocks: _Blocks, out: Outputs, row: int, row_step: int, column: int, column_step: int, count: int
) -> int:
    """Store the scales and zero points of the first `count` blocks, and set their `inverse` and `shift`.

    Those of block i go to row `row + row_step * i` and column `column + column_step * i`. Returns -1, or the first
    block whose scale is too large to be stored.
    """
    _, _, _, _, unsigned, scales, inverse, shift = blocks
    number, _, symmetric, positive, _ = form
    wide, narrow, zero_points = out.wide, out.narrow, out.zero_points
    middle, top = np.int32(1 << (number - 1)), np.int32((1 << number) - 1)
    for index in range(count):
        b = np.uintp(index)
        scale, code, inverse[b] = _settle(scales[b], out.scale_format, positive)
        if abs(scale) == np.inf:
            return index
        at_row, at_column = np.uintp(row + index * row_step), np.uintp(column + index * column_step)
        if wide.size == 0:
            narrow[at_row, at_column] = code
        else:
            wide[at_row, at_column] = scale
        zero = middle
        if not symmetric:
            low = _as_float(_lowest(unsigned[b]))
            zero = np.int32(min(max(np.int32(np.rint(low * inverse[b])), np.int32(0)), top))
            byte, place = (at_column * np.uintp(number)) >> np.uintp(3), (at_column * np.uintp(number)) & np.uintp(7)
            held = zero_points[at_row, byte] if place else np.uint8(0)
            zero_points[at_row, byte] = held | np.uint8(np.uint32(zero) << place)
        shift[b] = np.int32(zero - _MAGIC_BITS)
    return -1


@jit
def _code(value: Any, inverse: Any, shift: Any, top: Any, flip: Any) -> Any:
    """Return the code of an element, given its bits."""
    code = np.int32(np.int32(_as_bits(_as_float(value) * inverse + _MAGIC)) + shift)
    code = code if code > np.int32(0) else np.int32(0)
    return np.uint32(code if code < top else top) ^ flip


@jit
def _flip(form: Format) -> Any:
    """Return the upper bit of a code if it must be flipped for two's complement, or 0."""
    return np.uint32(1 << (form.number - 1)) if form.positive else np.uint32(0)


@jit
def _new_blocks(elements: int, apart: int, step: int, count: int) -> _Blocks:
    """Make room for `count` blocks that have `elements` elements together."""
    return _Blocks(
        np.empty(elements, np.uint32), apart, step, np.empty(count, np.uint32), np.empty(count, np.uint32),
        np.empty(count, np.float32), np.empty(count, np.float32), np.empty(count, np.int32),
    )  # fmt: skip


def _quantize_rows(source: Source, form: Format, out: Outputs) -> int:
    """Quantise an [N, K] source to blocks of 4 or 8 bits."""
    elements, half, stride, n, k = source
    codes, number, block = out.codes, form.number, form.block
    top, flip = np.int32((1 << number) - 1), _flip(form)
    blocks = _new_blocks(_ROW_PIECE, block, _ONE, _ROW_PIECE // block)
    bits, _, _, signed, unsigned, _, inverse, shift = blocks
    pairs = bits.view(np.uint64)
    for r in range(n):
        row = out.row_start + out.row_step * r
        for start in range(0, k, _ROW_PIECE):
            length, column = min(_ROW_PIECE, k - start), out.column_start + start
            _widen(elements, r * stride + start, half, bits, _ZERO, length)
            for b in range(length // block):
                signed[b], unsigned[b] = _ends(bits, b * block, block)
            failed: int = _find_scales(form, blocks, out.scale_format, length // block)
            if failed < 0:
                failed = _store_scales(form, blocks, out, row, _ZERO, column // block, _ONE, length // block)
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


@jit
def _widen_lanes(source: Source, start: int, lanes: int, pitch: int, blocks: _Blocks, block: int) -> None:
    """Read blocks that lie side by side. Row i of them goes to `blocks.bits[i * pitch :]`. Finds the ends of each."""
    bits, signed, unsigned = blocks.bits, blocks.signed, blocks.unsigned
    for r in range(lanes):
        signed[r] = unsigned[r] = 0
    for i in range(block):
        at = i * pitch
        _widen(source.bits, start + i * source.stride, source.half, bits, at, lanes)
        for r in range(lanes):
            value = bits[np.uintp(at + r)]
            signed[r] = max(np.int32(value), np.int32(signed[r]))
            unsigned[r] = max(value, unsigned[r])


@jit
def _pack_lanes(blocks: _Blocks, lanes: int, pitch: int, form: Format, packed: Any) -> None:
    """Pack the codes of blocks that lie side by side into words. Word w of lane r goes to `packed[w * pitch + r]`."""
    bits, inverse, shift, number = blocks.bits, blocks.inverse, blocks.shift, form.number
    top, flip, count = np.int32((1 << number) - 1), _flip(form), 32 // number
    for i in range(form.block):
        at, word = i * pitch, i // count * pitch
        place = np.uint32(i % count * number) & np.uint32(31)  # so that 32-bit shifts suffice
        for r in range(lanes):
            code = np.uint32(_code(bits[np.uintp(at + r)], inverse[r], shift[r], top, flip) << place)
            packed[np.uintp(word + r)] = packed[np.uintp(word + r)] | code if place else code


def _quantize_columns(source: Source, form: Format, out: Outputs) -> int:
    """Quantise a [K, N] source to blocks of 4 or 8 bits. The codes of `out` are uint32 words.

    Columns of the source lie side by side in vectors until the words of codes are made. Only words are transposed.
    """
    n, k, block, words, row_step = source.n, source.k, form.block, out.codes, out.row_step
    count = 32 // form.number  # codes of a word
    width = min(n, _TILE // block)
    pitch = width + _PAD
    blocks = _new_blocks(block * pitch, _ONE, pitch, width)
    packed = np.empty(block // count * pitch, np.uint32)
    for k0 in range(0, k, block):
        for n0 in range(0, n, width):
            lanes, row, column = min(width, n - n0), out.row_start + row_step * n0, out.column_start + k0
            _widen_lanes(source, k0 * source.stride + n0, lanes, pitch, blocks, block)
            failed: int = _find_scales(form, blocks, out.scale_format, lanes)
            if failed < 0:
                failed = _store_scales(form, blocks, out, row, row_step, column // block, _ZERO, lanes)
            if failed >= 0:
                return (n0 + failed) * k + k0
            _pack_lanes(blocks, lanes, pitch, form, packed)
            for r in range(lanes):
                for word in range(block // count):
                    at = word * pitch + r
                    words[np.uintp(row + row_step * r), np.uintp(column // count + word)] = packed[np.uintp(at)]
    return -1


@jit
def _gather(
    source: Any, start: int, stride: int, transposed: bool, rows: int, length: int, tile: Any, width: int
) -> None:
    """Set `tile[r * width + i]` to element (r, i) in the result's order, counted from `start` in the source."""
    if transposed:
        for i in range(length):
            for r in range(rows):
                tile[np.uintp(r * width + i)] = source[np.uintp(start + i * stride + r)]
    else:
        for r in range(rows):
            for i in range(length):
                tile[np.uintp(r * width + i)] = source[np.uintp(start + r * stride + i)]


@jit
def _largest(tile: Any, start: int, width: int, rows: int, length: int, half: bool, bits: Any) -> Any:
    """Return the largest magnitude, as bits, in some rows of a tile from `start` on. `bits` is room to work in."""
    largest = np.uint32(0)
    for r in range(rows):
        for i in range(0, length, len(bits)):
            count = min(len(bits), length - i)
            _widen(tile, start + r * width + i, half, bits, _ZERO, count)
            for j in range(count):
                largest = max(largest, np.uint32(bits[np.uintp(j)] & _MAGNITUDE))
    return largest


@jit
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


def _quantize_fp8(source: Source, transposed: bool, square: bool, positive: bool, out: Outputs) -> int:
    """Quantise to E4M3FN with one scale for a row, or for a square block of rows (then `out.row_step` is 1)."""
    elements, half, stride, n, k = source
    codes, wide, narrow, scale_format, _, row_start, row_step, _ = out
    tile_n = _BLOCK if square else (_FP8_TILE_N if transposed else 1)
    tile_k = _BLOCK if square else k
    width = (tile_k + 63) // 64 * 64 + _PAD
    tile = np.empty(tile_n * width, elements.dtype)
    piece = min(tile_k, _ROW_PIECE)
    bits = np.empty(piece, np.uint32)
    for k0 in range(0, k, tile_k):
        for n0 in range(0, n, tile_n):
            rows, length = min(tile_n, n - n0), min(tile_k, k - k0)
            start = k0 * stride + n0 if transposed else n0 * stride + k0
            _gather(elements, start, stride, transposed, rows, length, tile, width)
            group = rows if square else 1  # rows that share a scale
            for first in range(0, rows, group):
                largest = _largest(tile, first * width, width, group, length, half, bits)
                if largest >= _INFINITE:
                    return (n0 + first) * k + k0
                row = row_start + row_step * (n0 + first)
                scale = _as_float(largest) / np.float32(448)
                scale, code, inverse = _settle(scale, scale_format, positive)
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
    """The compiled kernel `rows`, `columns` or `fp8` for sources of 2 or 4 bytes; compiled or loaded on first use.

    Raises:
        EnvironmentLacks: Numba's compiler is turned off.
    """
    check_compiled()
    with _lock:
        return _compiled(name, itemsize)


@functools.cache
def _compiled(name: str, itemsize: int) -> Callable[..., int]:
    i, flag = types.int64, types.boolean
    bits = types.Array(types.uint16 if itemsize == 2 else types.uint32, 1, "C", readonly=True)
    u8, u16, u32, f32 = (types.Array(t, 2, "C") for t in (types.uint8, types.uint16, types.uint32, types.float32))
    codes = u32 if name == "columns" else u8
    named: Any = types.NamedTuple
    source, form = named([bits, flag, i, i, i], Source), named([i, i, flag, flag, flag], Format)
    out = named([codes, f32, u16, i, u8, i, i, i], Outputs)
    kernels: dict[str, tuple[Any, Any]] = {
        "rows": (_quantize_rows, i(source, form, out)),
        "columns": (_quantize_columns, i(source, form, out)),
        "fp8": (_quantize_fp8, i(source, flag, flag, flag, out)),
    }
    compiled: Callable[..., int] = jit(*kernels[name])
    return compiled
