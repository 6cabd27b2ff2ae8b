"""The layout in which the CPU kernels of `runtimes/cpp/kernels` read quantised weights, and the way back.

A matrix [N, K] of b bits, b = 4 or 8, in blocks of B along K. Rows are padded to whole tiles of 32 with scale 0. Tiles
lie one after the other; in a tile, its K / B blocks in order. A block is, little-endian:

| bytes | |
|---|---|
| 64 | 32 scales, float16, of the tile's rows; of any sign |
| 64 | 32 zero points, uint16, below 2^b; only where the matrix has zero points, which are 2^(b-1) otherwise |
| B / 4 groups of 16 b | the codes of columns 4 g .. 4 g + 3, g = 0, 1, .. |

In a group of 4-bit codes, byte 4 r + j holds those of column 4 g + j: of row r in the low nibble, of row 16 + r in the
high one. In a group of 8-bit codes, byte 4 r + j is that of row r and column 4 g + j. A weight is
(code - zero point) * scale. Everything starts at a multiple of 64 bytes from the start of the array.
`runtimes/cpp/kernels/layout.hpp` says why.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TILE_ROWS", "CpuFormat", "gate_up_order", "pack_tiles", "unpack_tiles"]

TILE_ROWS = 32
"""Rows of a matrix that lie together."""

_HALF = TILE_ROWS // 2
_LINE_BYTES = 64
_PIECE_BYTES = 256 << 10

Array = NDArray[Any]


@dataclass(frozen=True)
class CpuFormat:
    """The shape and coding of matrices [rows, columns] = [N, K] in tiles.

    `bits` is 4 or 8, `block_size` 16, 32, 64 or 128, and `columns` a multiple of it.

    Raises:
        ValueError: the fields do not go together.
    """

    rows: int
    columns: int
    bits: int
    block_size: int
    zero_points: bool = False

    def __post_init__(self) -> None:
        if self.bits not in {4, 8}:
            raise ValueError(f"tiles have 4 or 8 bits, not {self.bits}")
        if self.block_size not in {16, 32, 64, 128}:
            raise ValueError(f"tiles have blocks of 16, 32, 64 or 128 columns, not {self.block_size}")
        if self.rows < 1 or self.columns < 1 or self.columns % self.block_size:
            raise ValueError(f"[{self.rows}, {self.columns}] is no matrix of blocks of {self.block_size} columns")

    @property
    def tiles(self) -> int:
        """How many tiles a matrix has, the last one perhaps in part."""
        return -(-self.rows // TILE_ROWS)

    @property
    def blocks(self) -> int:
        """K / B."""
        return self.columns // self.block_size

    @property
    def header_bytes(self) -> int:
        """What stands before the codes of a block: scales, and zero points if there are any."""
        return _LINE_BYTES * (1 + self.zero_points)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of one tile."""
        return self.header_bytes + TILE_ROWS * self.block_size * self.bits // 8

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile, a multiple of 64."""
        return self.blocks * self.block_bytes

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a matrix's uint8 array."""
        return self.tiles, self.tile_bytes


def gate_up_order(width: int) -> NDArray[np.int64]:
    """The order of the rows [gate | up] of a gated unit with I = `width`: indices into its 2 I rows.

    Rows 0..15 of tile t are rows 16 t .. 16 t + 15 of the gate, rows 16..31 the same of "up".

    Raises:
        ValueError: I is not a multiple of 16.
    """
    if width < 1 or width % _HALF:
        raise ValueError(f"a gated unit in tiles has a multiple of {_HALF} rows, not {width}")
    gate = np.arange(width, dtype=np.int64).reshape(-1, 1, _HALF)
    return np.concatenate([gate, width + gate], axis=1).reshape(-1)


def pack_tiles(
    layout: CpuFormat, codes: NDArray[np.uint8], scales: NDArray[np.float16], zero_points: Array | None = None
) -> NDArray[np.uint8]:
    """Tiles uint8 [.., T, tile bytes] of matrices [.., N, K] as `l4export.quantization.schemes` packs them.

    `codes` is uint8 [.., N, K * bits / 8], of 4 bits with even k in the low nibble; `scales` float16 [.., N, K / B].
    `zero_points` is uint8 [.., N, K / B], one a byte, where the layout has them. Rows may be packed
    apart from the others, from a multiple of 32 on.

    Raises:
        ValueError: arrays of other shapes or dtypes; scales that are not finite.
    """
    n, lead = layout.rows, codes.shape[:-2]
    _check(codes, np.uint8, (*lead, n, layout.columns * layout.bits // 8), "codes")
    _check(scales, np.float16, (*lead, n, layout.blocks), "scales")
    if not np.isfinite(scales).all():
        raise ValueError("scales are not finite in float16")
    if (zero_points is not None) != layout.zero_points:
        raise ValueError("zero points are given where the layout has none, or missing where it has them")
    tiles = np.zeros((*lead, layout.tiles, layout.blocks, layout.block_bytes), np.uint8)
    tiles[..., :_LINE_BYTES] = _by_tile(layout, scales).view(np.uint8)
    if zero_points is not None:
        _check(zero_points, np.uint8, (*lead, n, layout.blocks), "zero points")
        tiles[..., _LINE_BYTES : layout.header_bytes] = _by_tile(layout, zero_points.astype("<u2")).view(np.uint8)
    for matrix, into in zip(codes.reshape(-1, *codes.shape[-2:]), tiles.reshape(-1, *tiles.shape[-3:]), strict=True):
        _put_codes(layout, matrix, into[..., layout.header_bytes :])
    return tiles.reshape(*lead, *layout.shape)


def unpack_tiles(layout: CpuFormat, tiles: NDArray[np.uint8]) -> tuple[Array, Array, Array | None]:
    """Takes `pack_tiles` back: codes, scales, and zero points or None.

    Raises:
        ValueError: an array of another shape or dtype.
    """
    lead = tiles.shape[:-2]
    _check(tiles, np.uint8, (*lead, *layout.shape), "tiles")
    blocks = tiles.reshape(*lead, layout.tiles, layout.blocks, layout.block_bytes)
    scales = _by_row(layout, np.ascontiguousarray(blocks[..., :_LINE_BYTES]).view("<f2"))
    zeros = None
    if layout.zero_points:
        wide = np.ascontiguousarray(blocks[..., _LINE_BYTES : layout.header_bytes]).view("<u2")
        zeros = _by_row(layout, wide).astype(np.uint8)
    return _codes(layout, blocks[..., layout.header_bytes :]), scales, zeros


def _check(array: Array, dtype: Any, shape: tuple[int, ...], what: str) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{what} are {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}")


def _padded(layout: CpuFormat, rows: Array) -> Array:
    """[.., N, X] -> [.., T, 32, X], with zeros."""
    *lead, n, width = rows.shape
    if n % TILE_ROWS:
        padding = np.zeros((*lead, layout.tiles * TILE_ROWS - n, width), rows.dtype)
        rows = np.concatenate([rows, padding], axis=-2)
    return rows.reshape(*lead, layout.tiles, TILE_ROWS, width)


def _by_tile(layout: CpuFormat, values: Array) -> Array:
    """[.., N, K / B] of two bytes each -> [.., T, K / B, 32]."""
    return np.ascontiguousarray(np.swapaxes(_padded(layout, values), -1, -2))


def _by_row(layout: CpuFormat, values: Array) -> Array:
    """Takes `_by_tile` back."""
    rows = np.swapaxes(values, -1, -2).reshape(*values.shape[:-3], -1, layout.blocks)
    return np.ascontiguousarray(rows[..., : layout.rows, :])


def _put_codes(layout: CpuFormat, codes: Array, groups: Array) -> None:
    """Codes as stored [N, K * bits / 8] -> groups [T, K / B, bytes of a block]; as many tiles a time as caches hold."""
    step = max(1, _PIECE_BYTES // (TILE_ROWS * codes.shape[-1]))
    for first in range(0, layout.tiles, step):
        piece = codes[first * TILE_ROWS : (first + step) * TILE_ROWS]
        part = groups[first : first + step]
        part[...] = _groups(dataclasses.replace(layout, rows=len(piece)), piece).reshape(part.shape)


def _groups(layout: CpuFormat, codes: Array) -> Array:
    """Codes as stored [N, K * bits / 8] -> [T, K / 4, 16 * bits]."""
    rows = _padded(layout, codes)
    if layout.bits == 8:  # [T, 32, K / 4, 4] -> [T, K / 4, 32, 4]
        quads = rows.view("<u4")
        return np.ascontiguousarray(np.swapaxes(quads, -1, -2)).view(np.uint8)
    low, high = rows[..., :_HALF, :].view("<u2"), rows[..., _HALF:, :].view("<u2")  # 4 codes each
    both = _spread(low) | _spread(high) << 4
    return np.ascontiguousarray(np.swapaxes(both, -1, -2)).view(np.uint8)


def _codes(layout: CpuFormat, groups: Array) -> Array:
    """Takes `_put_codes` back: [.., T, K / B, bytes] -> [.., N, K * bits / 8]."""
    lead = groups.shape[:-3]
    quads = np.ascontiguousarray(groups).view("<u4")
    lanes = quads.reshape(*lead, layout.tiles, layout.columns // 4, -1).swapaxes(-1, -2)
    if layout.bits == 4:
        lanes = np.concatenate([_gathered(lanes), _gathered(lanes >> 4)], axis=-2)
    rows = np.ascontiguousarray(lanes).view(np.uint8).reshape(*lead, layout.tiles * TILE_ROWS, -1)
    return rows[..., : layout.rows, :]


def _spread(fours: Array) -> Array:
    """Four codes in 16 bits -> four bytes in 32, the code in the lower half of each."""
    wide = fours.astype("<u4")
    wide = (wide | wide << 8) & 0x00FF00FF
    spread: Array = (wide | wide << 4) & 0x0F0F0F0F
    return spread


def _gathered(fours: Array) -> Array:
    """Takes `_spread` back, whatever the upper halves hold."""
    wide = fours & 0x0F0F0F0F
    wide = (wide | wide >> 4) & 0x00FF00FF
    gathered: Array = ((wide | wide >> 8) & 0xFFFF).astype("<u2")
    return gathered
