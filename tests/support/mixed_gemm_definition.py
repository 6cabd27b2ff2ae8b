"""The definition of `l4export.engine.weight_layout`, step by step as ONNX Runtime's notes have it, on single codes.

[docs/contrib_ops/cuda/moe_qmoe.md, sections 6.1 and 6.2]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PERMUTATIONS = {
    4: (0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27,
        4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31),
    8: (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15),
}  # fmt: skip
_TILE = 64
_REGISTERS = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
"""The notes count from the highest bits: [7, 5, 3, 1, 6, 4, 2, 0] and [3, 1, 2, 0]."""

Integers = NDArray[np.int64]


def packed_order(codes: Integers, bits: int) -> Integers:
    """Codes [N, K], unsigned, in the order of the kernel: [N * K]."""
    signed = (codes - 2 ** (bits - 1)).T  # [K, N], as the kernel's matrix B
    permutation = _PERMUTATIONS[bits]
    rows = [base + row for base in range(0, len(signed), len(permutation)) for row in permutation]
    columns = signed[rows].T  # column-major: a column of B lies in one piece
    (n, k), interleaved = columns.shape, 16 // bits
    tiles = [
        columns[first + column, tile : tile + _TILE]
        for first in range(0, n, interleaved)
        for tile in range(0, k, _TILE)
        for column in range(interleaved)
    ]
    words = np.concatenate(tiles).reshape(-1, 32 // bits)
    return (words[:, _REGISTERS[bits]] + 2 ** (bits - 1)).reshape(-1)


def plain_order(packed: Integers, n: int, k: int, bits: int) -> Integers:
    """Takes `packed_order` back: each code to the place that its number came from."""
    places = packed_order(np.arange(n * k).reshape(n, k), bits)
    plain = np.empty(n * k, np.int64)
    plain[places] = packed
    return plain.reshape(n, k)


def as_bytes(codes: Integers, bits: int) -> NDArray[np.uint8]:
    """Codes as they are stored: of 4 bits two a byte, the first in the lower half."""
    stored = codes.astype(np.uint8)
    return stored if bits == 8 else stored[..., 0::2] | stored[..., 1::2] << 4
