"""Float32 weights from the tiles of l4export's own CPU kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from l4export.engine.cpu_weight_layout import TILE_ROWS, CpuFormat, unpack_tiles
from l4export.quantization import Scheme, dequantize
from l4export.quantization.cpu_operators import is_gated, layout_of
from l4export.quantization.tiled_weight import in_turn_rows, paired_zero_points

__all__ = ["tiled_matrices"]


def tiled_matrices(node: ir.Node, operand: int, rows: slice, tiles: np.ndarray) -> np.ndarray:
    """Some rows of a weight [N, K], or experts of one [E, N, K], in float32, from the whole of its tiles.

    Rows of a gated unit come in turn, as `l4export.quantization.tiled_weight.TiledWeight` takes them.
    """
    layout = layout_of(node, operand)
    gated = is_gated(node, operand)
    if tiles.ndim == 3:
        matrices = [_matrix(layout, expert, gated) for expert in tiles[rows]]
        return np.stack(matrices) if matrices else np.empty((0, layout.rows, layout.columns), np.float32)
    first, stop = rows.start // TILE_ROWS, -(-rows.stop // TILE_ROWS)
    start = first * TILE_ROWS
    part = dataclasses.replace(layout, rows=max(1, min(layout.rows, stop * TILE_ROWS) - start))
    return _matrix(part, tiles[first:stop], gated)[rows.start - start : rows.stop - start : rows.step]


def _matrix(layout: CpuFormat, tiles: np.ndarray, gated: bool) -> np.ndarray:
    """The rows of some tiles."""
    codes, scales, zero_points = unpack_tiles(layout, tiles)
    scheme = Scheme("int4" if layout.bits == 4 else "int8", layout.block_size, zero_points is None, "float16")
    if zero_points is not None and layout.bits == 4:
        zero_points = paired_zero_points(zero_points)
    values = dequantize(codes, scales, zero_points, scheme)
    return in_turn_rows(values) if gated else values
