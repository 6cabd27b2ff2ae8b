"""The tiles that CPU kernels read: place by place against the words of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from l4export.engine.cpu_weight_layout import CpuFormat, gate_up_order, pack_tiles, unpack_tiles

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]

LAYOUTS = [
    CpuFormat(rows, columns, bits, block, zero_points)
    for rows, columns, block in [(32, 16, 16), (64, 96, 32), (33, 64, 64), (5, 256, 128)]
    for bits in (4, 8)
    for zero_points in (False, True)
]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def random_parts(layout: CpuFormat, *lead: int) -> Parts:
    """Codes, one a byte; scales; zero points."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**layout.bits, (*lead, layout.rows, layout.columns), np.uint8)
    scales = rng.standard_normal((*lead, layout.rows, layout.blocks)).astype(np.float16)
    return codes, scales, rng.integers(0, 2**layout.bits, scales.shape, np.uint8)


def stored(codes: np.ndarray, bits: int) -> np.ndarray:
    return codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4


def packed(layout: CpuFormat, parts: Parts) -> np.ndarray:
    codes, scales, zeros = parts
    return pack_tiles(layout, stored(codes, layout.bits), scales, zeros if layout.zero_points else None)


def by_definition(layout: CpuFormat, parts: Parts) -> np.ndarray:
    """The table of the module, one number after the other."""
    codes, scales, zeros = parts
    tiles = np.zeros(layout.shape, np.uint8)
    for n in range(layout.rows):
        tile, row = divmod(n, 32)
        for b in range(layout.blocks):
            block = tiles[tile, b * layout.block_bytes :][: layout.block_bytes]
            block[:64].view(np.float16)[row] = scales[n, b]
            if layout.zero_points:
                block[64:128].view(np.uint16)[row] = zeros[n, b]
            groups = block[layout.header_bytes :].reshape(layout.block_size // 4, -1)
            for k in range(layout.block_size):
                code, (g, j) = codes[n, b * layout.block_size + k], divmod(k, 4)
                if layout.bits == 8:
                    groups[g, 4 * row + j] = code
                else:
                    groups[g, 4 * (row % 16) + j] |= code << (4 * (row // 16))
    return tiles


@layouts
def test_every_number_has_its_place(layout: CpuFormat) -> None:
    parts = random_parts(layout)
    np.testing.assert_array_equal(packed(layout, parts), by_definition(layout, parts))


@layouts
def test_unpacking_takes_it_back(layout: CpuFormat) -> None:
    codes, scales, zeros = parts = random_parts(layout, 2, 3)
    tiles = packed(layout, parts)
    assert tiles.shape == (2, 3, *layout.shape)
    found_codes, found_scales, found_zeros = unpack_tiles(layout, tiles)
    np.testing.assert_array_equal(found_codes, stored(codes, layout.bits))
    np.testing.assert_array_equal(found_scales, scales)
    if layout.zero_points:
        np.testing.assert_array_equal(found_zeros, zeros)
    else:
        assert found_zeros is None


def test_tiles_stand_alone() -> None:
    """As emission packs them: some tiles, and some experts, at a time."""
    whole = CpuFormat(96, 64, 4, 32)
    codes, scales, zeros = random_parts(whole, 2)
    tiles = packed(whole, (codes, scales, zeros))
    for expert in range(2):
        for tile in range(3):
            rows = np.s_[expert, 32 * tile : 32 * tile + 32]
            one = packed(CpuFormat(32, 64, 4, 32), (codes[rows], scales[rows], zeros[rows]))
            np.testing.assert_array_equal(one[0], tiles[expert, tile])


def test_gate_and_up_share_tiles() -> None:
    np.testing.assert_array_equal(gate_up_order(32), [*range(16), *range(32, 48), *range(16, 32), *range(48, 64)])
    with pytest.raises(ValueError, match="a multiple of 16 rows, not 24"):
        gate_up_order(24)


def test_what_has_no_tiles() -> None:
    for fields, message in [
        ((32, 32, 5, 32), "4 or 8 bits, not 5"),
        ((32, 48, 4, 48), "not 48"),
        ((32, 80, 4, 32), "no matrix of blocks of 32"),
        ((0, 32, 4, 32), "no matrix"),
    ]:
        with pytest.raises(ValueError, match=message):
            CpuFormat(*fields)
    layout = CpuFormat(32, 32, 4, 32)
    codes, scales, zeros = random_parts(layout)
    with pytest.raises(ValueError, match=r"codes are uint8 \[32, 32\], not uint8 \[32, 16\]"):
        pack_tiles(layout, codes, scales)
    with pytest.raises(ValueError, match="scales are float32"):
        pack_tiles(layout, stored(codes, 4), scales.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not finite"):
        pack_tiles(layout, stored(codes, 4), np.full_like(scales, np.inf))
    with pytest.raises(ValueError, match="the layout has none"):
        pack_tiles(layout, stored(codes, 4), scales, zeros)
    with pytest.raises(ValueError, match="tiles are"):
        unpack_tiles(layout, np.zeros((1, 100), np.uint8))
