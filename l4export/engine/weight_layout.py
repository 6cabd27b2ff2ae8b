"""The order in which ONNX Runtime's CUDA kernels for experts read their codes, and the way back.

The kernel of `QMoE` with 4 or 8 bits multiplies by CUTLASS's tensor core tiles. On every card it reads the codes of an
expert [N, K] in the order of compute capability 8.0 [ONNX Runtime, docs/contrib_ops/cuda/moe_qmoe.md, sections 5.1, 6.1
and 6.2]. With r = 16 / bits:

1. Along K pairs of codes change places: 4 r pairs, seen as r rows of 4, are taken column by column, as the lanes of a
   warp load them.
2. Tiles of 64 codes from r neighbouring rows of N lie in turn (`ColumnMajorTileInterleave<64, r>`).
3. In every 32 bits the codes at even places come first, then those at odd ones, as the kernel widens them.

Codes stay unsigned: the steps of the notes take 2^(bits - 1) away and add it again. Scales and zero points keep their
places. r rows together take the bytes that they took before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIXED_GEMM_SM80", "fits", "pack", "rows_together", "unpack"]

MIXED_GEMM_SM80 = "mixed_gemm_sm80"
"""The name of this order in manifests."""

_TILE = 64
"""Codes along K that stay together."""

_ROWS = 16
"""N is a multiple of this in ONNX Runtime's own packing of 4 bits, which takes 8 bytes along N at a time."""

_PIECE_BYTES = 128 << 10

_WORD, _SWAP = np.dtype("<u4"), (0, 2, 1, 3, 5, 4)

Codes = NDArray[np.uint8]
Words = Any
"""An array of 32-bit words: NumPy's types do not know that their width stays."""


def fits(n: int, k: int, bits: int) -> bool:
    """Whether codes [n, k] of `bits` bits have this order."""
    return bits in {4, 8} and n % _ROWS == 0 and k % _TILE == 0


def rows_together(bits: int) -> int:
    """How many neighbouring rows are packed together."""
    return 16 // bits


def pack(codes: Codes, bits: int) -> Codes:
    """Put codes uint8 [.., n, k * bits / 8] into the kernel's order, in the same shape.

    Of two codes of 4 bits in a byte, that with the even index is in the lower half. n is a multiple of `rows_together`,
    k of 64.
    """
    return _by_pieces(_packed, codes, bits)


def unpack(packed: Codes, bits: int) -> Codes:
    """Take `pack` back: from the kernel's order to plain codes, in the same shape."""
    return _by_pieces(_unpacked, packed, bits)


def _by_pieces(move: Callable[[Codes, int], Words], codes: Codes, bits: int) -> Codes:
    """Rows that are together stay together; with few at a time, a processor's caches hold them."""
    rows = codes.reshape(-1, codes.shape[-1])
    moved = np.empty_like(rows, order="C")
    step = rows_together(bits) * max(1, _PIECE_BYTES // (rows_together(bits) * rows.shape[-1]))
    for first in range(0, len(rows), step):
        piece = np.ascontiguousarray(rows[first : first + step])
        moved[first : first + step].reshape(-1).view(_WORD)[:] = move(piece, bits)
    return moved.reshape(codes.shape)


def _packed(codes: Codes, bits: int) -> Words:
    turned = np.ascontiguousarray(_units(codes, bits).transpose(_SWAP))
    return _even_first(turned.reshape(-1).view(_WORD), bits)


def _unpacked(packed: Codes, bits: int) -> Words:
    plain = _in_turn(packed.reshape(-1).view(_WORD), bits).view(np.uint8).reshape(packed.shape)
    units = _units(plain, bits)
    rows, together, tiles, groups, down, across = units.shape
    turned = units.reshape(rows, tiles, together, groups, across, down).transpose(_SWAP)
    return np.ascontiguousarray(turned).reshape(-1).view(_WORD)


def _units(codes: Codes, bits: int) -> NDArray[Any]:
    """Pairs of codes [n / r, r, tiles, groups of a tile, r, 4]."""
    r = rows_together(bits)
    pair = np.dtype(np.uint8) if bits == 4 else np.dtype("<u2")
    units = codes.view(pair)
    return units.reshape(-1, r, units.shape[-1] * 2 // _TILE, _TILE // (8 * r), r, 4)


def _even_first(words: Words, bits: int) -> Words:
    """Codes 0, 1, 2 .. of each word to codes 0, 2, .., 1, 3, .."""
    if bits == 8:
        return _middle_exchanged(words)
    return _halves_closed(words) | _halves_closed(words >> 4) << 16


def _in_turn(words: Words, bits: int) -> Words:
    """Takes `_even_first` back."""
    if bits == 8:
        return _middle_exchanged(words)
    return _halves_opened(words & 0xFFFF) | _halves_opened(words >> 16) << 4


def _middle_exchanged(words: Words) -> Words:
    return words & 0xFF0000FF | words >> 8 & 0xFF00 | words << 8 & 0xFF0000


def _halves_closed(words: Words) -> Words:
    """The lower halves of 4 bytes, in the lower 16 bits."""
    closed = words & 0x0F0F0F0F
    closed = (closed | closed >> 4) & 0x00FF00FF
    return (closed | closed >> 8) & 0xFFFF


def _halves_opened(words: Words) -> Words:
    """Takes `_halves_closed` back."""
    opened = (words | words << 8) & 0x00FF00FF
    return (opened | opened << 4) & 0x0F0F0F0F
