"""Integers of 4 or 8 bits in words of 32 bits, as compressed-tensors packs codes and zero points.

A code q is stored unsigned, as q + 2^(bits - 1). The first of the elements that share a word has its lowest bits, and
so on upwards; the last word of a line is filled up with elements that do not count. Codes are packed along a row, zero
points along a column. Other numbers of bits are not read: versions of the format pack them in different ways.
"""

from __future__ import annotations

import numpy as np

from l4export.checkpoint.source_tensor import SourceTensor

__all__ = ["PACKED_BITS", "PackedInts", "pack", "packed_octets", "unpack", "words"]

PACKED_BITS = (4, 8)
"""The numbers of bits that are read."""


def words(elements: int, bits: int) -> int:
    """How many words of 32 bits hold that many elements."""
    return -(-elements * bits // 32)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """int32 [..., n] -> int8 [..., n * 32 / bits]: every element of the words, in order."""
    octets = np.ascontiguousarray(packed, "<i4").view(np.uint8)
    if bits == 4:
        both = np.empty((*octets.shape, 2), np.uint8)
        np.bitwise_and(octets, 15, out=both[..., 0])
        np.right_shift(octets, 4, out=both[..., 1])
        octets = both.reshape(*octets.shape[:-1], -1)
    return (octets - np.uint8(1 << (bits - 1))).view(np.int8)  # wraps to the signed code


def packed_octets(packed: SourceTensor, rows: slice, octets: slice) -> np.ndarray:
    """Bytes of some rows of a tensor that is packed along them: the unsigned codes, in order."""
    words = packed.read((rows, slice(octets.start // 4, -(-octets.stop // 4))))
    first = octets.start // 4 * 4
    return np.ascontiguousarray(words, "<i4").view(np.uint8)[:, octets.start - first : octets.stop - first]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """int8 [..., n] -> int32 [..., n * bits / 32], the opposite of `unpack`; n must fill whole words."""
    octets = codes.view(np.uint8) + np.uint8(1 << (bits - 1))  # wraps to the unsigned code
    if bits == 4:
        octets = octets[..., ::2] | octets[..., 1::2] << np.uint8(4)
    return np.ascontiguousarray(octets).view("<i4")


class PackedInts:
    """A matrix of integers in a tensor of words, which are packed along `axis`; read as int8."""

    def __init__(self, packed: SourceTensor, bits: int, axis: int) -> None:
        self._packed, self._bits, self._axis = packed, bits, axis

    def read(self, region: tuple[slice, ...]) -> np.ndarray:
        """The elements of a region, one slice in bounds and of step 1 for each axis, as int8."""
        a_word, cut = 32 // self._bits, region[self._axis]
        first = cut.start // a_word
        asked = list(region)
        asked[self._axis] = slice(first, words(cut.stop, self._bits))
        found = np.moveaxis(
            unpack(np.moveaxis(self._packed.read(tuple(asked)), self._axis, -1), self._bits), -1, self._axis
        )
        wanted = [slice(None), slice(None)]
        wanted[self._axis] = slice(cut.start - first * a_word, cut.stop - first * a_word)
        return found[tuple(wanted)]
