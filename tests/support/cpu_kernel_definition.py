"""What the operators of domain l4.cpu compute, step by step in NumPy; the kernels give these bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from exact_float import F32, fma


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix: codes uint8 [N, K], scales float16 [N, K / B], zero points uint8 [N, K / B]."""

    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray
    bits: int

    @property
    def block(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def less_zero(self) -> np.ndarray:
        """Codes less zero points, int64 [N, K / B, B]."""
        blocks = self.codes.reshape(*self.scales.shape, self.block).astype(np.int64)
        return blocks - self.zero_points[..., None].astype(np.int64)


def quantised(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 codes [M, K / B, B] and float32 scales [M, K / B] of activations [M, K]."""
    blocks = x.reshape(len(x), -1, block)
    most = np.abs(blocks).max(-1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        usual = (most >= F32(2.0**-119)) & np.isfinite(most)
        inverse = np.where(usual, F32(127) / most, F32(0)).astype(F32)
        scales = np.where(usual, most / F32(127), np.where(most < 1, F32(0), F32(np.nan))).astype(F32)
        codes = np.where(usual[..., None], np.rint(blocks * inverse[..., None]), 0)
    return codes.astype(np.int64), scales


def linear_int8(x: np.ndarray, w: Matrix) -> np.ndarray:
    """y [M, N]: an exact integer sum a block, then one fma a block, in order."""
    codes, row_scales = quantised(x, w.block)
    dots = np.einsum("mbk,nbk->bmn", codes, w.less_zero())
    y = np.zeros((len(x), len(w.codes)), F32)
    with np.errstate(over="ignore", invalid="ignore"):
        for b, dot in enumerate(dots):
            scale = row_scales[:, b, None] * w.scales[None, :, b].astype(F32)
            y = fma(dot.astype(F32), scale, y)
    return y


def linear_float(x: np.ndarray, w: Matrix) -> np.ndarray:
    """y [M, N]: four sums a block, over columns 4 g + j, added in pairs; then one fma a block, in order."""
    columns, weights = x.reshape(len(x), -1, w.block), w.less_zero().astype(F32)
    y = np.zeros((len(x), len(w.codes)), F32)
    with np.errstate(over="ignore", invalid="ignore"):
        for b in range(weights.shape[1]):
            p = [np.zeros_like(y) for _ in range(4)]
            for k in range(w.block):
                p[k % 4] = fma(weights[None, :, b, k], columns[:, None, b, k], p[k % 4])
            y = fma(w.scales[None, :, b].astype(F32), (p[0] + p[1]) + (p[2] + p[3]), y)
    return y


def linear(x: np.ndarray, w: Matrix, int8: bool, bias: np.ndarray | None = None) -> np.ndarray:
    y = linear_int8(x, w) if int8 else linear_float(x, w)
    return y if bias is None else y + bias


def exponential(x: np.ndarray) -> np.ndarray:
    """e^x as kernel/exponential.hpp has it."""
    clamped = np.clip(x, F32(-87), F32(88))
    n = np.rint(clamped * F32(1.44269504))
    r = fma(n, F32(2.12194440e-4), fma(n, F32(-0.693359375), clamped))
    p = np.full_like(r, 1.98756912e-4)
    for c in (1.39819994e-3, 8.33345205e-3, 4.16657962e-2, 1.66666660e-1, 0.5, 1.0, 1.0):
        p = fma(p, r, F32(c))
    return np.where(x > 88, F32(np.inf), np.ldexp(p, np.where(np.isnan(n), 0, n).astype(np.int32)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(np.isnan(x), x, F32(1) / (F32(1) + exponential(-x)))


def gated(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return gate / (F32(1) + exponential(F32(0) - gate)) * up


@dataclass(frozen=True)
class Unit:
    """gate and up rows [2 I, H] one after the other, and down [H, I]."""

    gate_up: Matrix
    down: Matrix

    def __call__(self, x: np.ndarray, int8: bool) -> np.ndarray:
        both = linear(x, self.gate_up, int8)
        width = both.shape[1] // 2
        return linear(gated(both[:, :width], both[:, width:]), self.down, int8)


def chosen(logits: np.ndarray, k: int) -> np.ndarray:
    """bool [T, E]: the k largest logits of a row, of equal ones the first; the first k where one is NaN."""
    logits = np.where(np.isnan(logits).any(-1, keepdims=True), F32(0), logits)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return (order[..., None] == np.arange(logits.shape[1])).any(1)


def moe(x: np.ndarray, logits: np.ndarray, k: int, experts: list[Unit], shared: Unit | None, int8: bool) -> np.ndarray:
    """y [T, H]: the shared expert, then the chosen experts in order of their index."""
    scores = np.where(np.isnan(logits).any(-1, keepdims=True), F32(np.nan), sigmoid(logits))
    mask, y = chosen(logits, k), np.zeros_like(x)
    if shared is not None:
        y = y + shared(x, int8)
    for e, expert in enumerate(experts):
        rows = np.flatnonzero(mask[:, e])
        if len(rows):
            y[rows] += expert(scores[rows, e, None] * x[rows], int8)
    return y
