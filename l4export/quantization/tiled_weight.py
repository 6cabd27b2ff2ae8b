"""A quantised weight as the CPU kernels of `runtimes/cpp/kernels` read it: codes and scales together, in tiles."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from l4export.engine.cpu_weight_layout import TILE_ROWS, CpuFormat, pack_tiles
from l4export.weights.evaluation import Evaluation, Output
from l4export.weights.recipes import Recipe, Region

__all__ = ["TiledWeight", "gate_up_rows", "in_turn_rows", "paired_zero_points", "single_zero_points"]

_HALF = TILE_ROWS // 2


class TiledWeight(Evaluation):
    """A coded weight [N, K] or [E, N, K] as uint8 [T, tile bytes] or [E, T, tile bytes] of `layout`.

    `codes` is the first output of an evaluation of codes, float16 scales and, where the layout has them, zero points,
    packed as `l4export.quantization.schemes` says. Tiles stand alone, so that any of them can be computed by
    themselves, and weights of whole tiles be put one below the other by `Stack`.

    In a `gated` weight the rows of gate and up lie in turn; in a tile then lie 16 rows of the gate, and below them the
    same 16 of up (`l4export.engine.cpu_weight_layout.gate_up_order`).

    Raises:
        ValueError: outputs that the layout does not fit, or scales of another type.
    """

    def __init__(self, codes: Recipe, layout: CpuFormat, gated: bool = False) -> None:
        if not isinstance(codes, Output) or codes.evaluation.lead[-1] != layout.rows:
            raise ValueError(f"{codes!r}: not the codes of a weight of {layout.rows} rows")
        dtypes = [out.dtype for out in codes.evaluation.outputs]
        if dtypes != [ir.DataType.UINT8, ir.DataType.FLOAT16, *[ir.DataType.UINT8] * layout.zero_points]:
            raise ValueError(f"{codes!r}: tiles hold codes, float16 scales and zero points, not {dtypes}")
        *outer, _ = codes.evaluation.lead
        super().__init__((*outer, layout.tiles))
        self.codes, self.layout, self.gated = codes, layout, gated
        self.outputs = (Output(self, 0, ir.DataType.UINT8, (*outer, *layout.shape)),)

    @property
    def tiles(self) -> Output:
        """The one output."""
        (tiles,) = self.outputs
        assert isinstance(tiles, Output)
        return tiles

    def evaluate(self, region: Region) -> tuple[np.ndarray, ...]:
        """Some tiles."""
        *outer, asked = region
        rows = slice(asked.start * TILE_ROWS, min(asked.stop * TILE_ROWS, self.layout.rows))
        parts = self.codes.evaluation.evaluate((*outer, rows))
        codes, scales, *zeros = map(gate_up_rows, parts) if self.gated else parts
        layout = dataclasses.replace(self.layout, rows=rows.stop - rows.start)
        zero_points = single_zero_points(zeros[0], self.layout) if zeros else None
        return (pack_tiles(layout, codes, scales, zero_points),)


def gate_up_rows(in_turn: np.ndarray) -> np.ndarray:
    """Rows [.., 32 t, X] of gate and up in turn -> 16 of the gate, the same 16 of up, and so on."""
    pairs = in_turn.reshape(*in_turn.shape[:-2], -1, _HALF, 2, in_turn.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(-2, -3)).reshape(in_turn.shape)


def in_turn_rows(gate_up: np.ndarray) -> np.ndarray:
    """Takes `gate_up_rows` back."""
    halves = gate_up.reshape(*gate_up.shape[:-2], -1, 2, _HALF, gate_up.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(-2, -3)).reshape(gate_up.shape)


def single_zero_points(zero_points: np.ndarray, layout: CpuFormat) -> np.ndarray:
    """Zero points as `l4export.quantization.schemes` packs them -> [.., blocks], one a byte."""
    if layout.bits == 8:
        return zero_points
    pairs = np.stack([zero_points & 15, zero_points >> 4], axis=-1)
    return pairs.reshape(*zero_points.shape[:-1], -1)[..., : layout.blocks]


def paired_zero_points(zero_points: np.ndarray) -> np.ndarray:
    """Takes `single_zero_points` of 4 bits back."""
    odd = [(0, 0)] * (zero_points.ndim - 1) + [(0, zero_points.shape[-1] % 2)]
    pairs = np.pad(zero_points, odd)
    return np.asarray(pairs[..., 0::2] | pairs[..., 1::2] << 4)
