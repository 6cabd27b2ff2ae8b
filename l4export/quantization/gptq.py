"""GPTQ: rounding in which the weights that are still to be rounded make up for the errors of those that were.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022 (arXiv:2210.17323). For a matrix W [N, K] and inputs X [K, tokens] it finds codes whose values W'
make |W X - W' X|^2 = tr((W - W') X X' (W - W')') small. Let H = 2 X X' be the moments, and U upper triangular with
U' U = H^-1. Columns are rounded one by one, and the error e = (w_i - w'_i) / U_ii of column i is subtracted from the
columns after it: w_j -= e U_ij. Columns are taken in the order of falling H_ii (the paper's "activation order"). Each
column uses the scale of its block, whenever its turn comes, so the packing is that of rounding to nearest.

Three more steps make the same sum smaller, and none makes it larger:

* Before GPTQ, several fractions of each block's plain scale are tried, and the best one is taken. An error in column i
  costs H_ii.
* After GPTQ come sweeps of coordinate descent. They replace each code in turn by the best one, given all the others.
* Between sweeps the scales of a row are fitted to its codes by least squares.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l4export.quantization.quantize import dequantize, quantize_rows
from l4export.quantization.schemes import Scheme

__all__ = ["DAMPING", "QuantizedMatrix", "gptq", "inverse_factor"]

DAMPING = 0.05
"""What is added to the diagonal of the moments, as a share of its mean, so that directions that no token had cost
something too."""

_COLUMNS = 128
"""The number of columns that are rounded before one matrix product carries their errors to all columns after them."""

_ROWS, _FEWEST_ROWS = 256, 16
"""The largest and the smallest number of rows that one worker takes at a time. The number follows from the matrix, so
the bytes do not depend on the number of workers."""

_GROUP = 32
"""The smallest number of rows that are rounded before their errors are carried to the rows after them, and the largest
number of such groups."""

_FACTORS = np.linspace(1.0, 0.7, 13, dtype=np.float32)
"""The fractions of the plain scale that are tried."""

_SWEEPS = 3
"""The number of sweeps of coordinate descent. The scales are fitted between two sweeps."""

_SMALLEST = np.float32(2.0**-126)


@dataclass(frozen=True)
class QuantizedMatrix:
    """The codes, scales and zero points (None for symmetric schemes) of one [N, K] matrix, packed as `Scheme` says."""

    scheme: Scheme
    codes: np.ndarray
    scales: np.ndarray
    zero_points: np.ndarray | None

    @classmethod
    def rounded(cls, weight: NDArray[np.float32], scheme: Scheme) -> QuantizedMatrix:
        """Round a matrix [N, K] to nearest."""
        parts = scheme.allocate(*weight.shape)
        quantize_rows(weight, scheme, *parts)
        return cls(scheme, *parts)

    @classmethod
    def stacked(cls, parts: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
        """Stack matrices of one scheme, one below the other."""
        codes, scales = (np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
        zeros = [part.zero_points for part in parts if part.zero_points is not None]
        return cls(parts[0].scheme, codes, scales, np.concatenate(zeros) if zeros else None)

    @property
    def values(self) -> NDArray[np.float32]:
        """The float32 [N, K] matrix that the codes stand for."""
        return dequantize(self.codes, self.scales, self.zero_points, self.scheme)


def gptq(
    weight: NDArray[np.float32],
    moments: NDArray[np.float64],
    scheme: Scheme,
    damping: float = DAMPING,
    feedback: NDArray[np.float32] | None = None,
) -> tuple[QuantizedMatrix, float]:
    """Quantise `weight` float32 [N, K] for inputs with the moments H = 2 X X', float64 [K, K], to an integer scheme.

    `feedback` is given when an output error e [N] costs e' C e and not the same in every direction. It is the upper
    triangular V, float32 [N, N], with V' V = C^-1 (`inverse_factor`). Rows are then rounded group after group, and the
    errors of a group are subtracted from the rows after it, as GPTQ does with columns.

    Returns the matrix and the damping that was used. `damping` is multiplied by ten until H is no longer singular to
    float accuracy.

    Raises:
        EnvironmentLacks: Numba's compiler is turned off.
    """
    from l4export.quantization.jit import check_compiled

    check_compiled()
    n, _ = weight.shape
    order = np.argsort(-np.diagonal(moments), kind="stable")
    factor, damping = inverse_factor(moments, order, damping)
    damped = moments.astype(np.float32)
    np.fill_diagonal(damped, np.diagonal(moments) + damping * _mean(moments))
    problem = _Problem(scheme, damped, factor, order, order // scheme.block_size)
    group = n if feedback is None else max(_GROUP, n // _GROUP)
    left, done = weight if feedback is None else weight.copy(), []
    with _one_thread_each() as pool:
        for start in range(0, n, group):
            stop = min(start + group, n)
            done.append(problem.round_rows(left[start:stop], pool))
            if feedback is not None and stop < n:
                missed = left[start:stop] - done[-1].values
                errors = np.linalg.solve(feedback[start:stop, start:stop].T, missed)
                left[stop:] -= _product(np.ascontiguousarray(feedback[start:stop, stop:].T), errors)
    return QuantizedMatrix.stacked(done), damping


def inverse_factor(
    moments: NDArray[np.float64], order: NDArray[np.int64], damping: float
) -> tuple[NDArray[np.float32], float]:
    """Compute the upper triangular U with U' U = (H + damping * mean(diag H))^-1, where H is reordered by `order`.

    Let J reverse rows. Then J H J = L L' gives H = R R' for the upper triangular R = J L J, and U = R^-1. This takes
    one factorisation in float64 and one triangular inverse in float32. Returns U, float32 [K, K], and the damping that
    was needed.
    """
    import torch

    turned = torch.from_numpy(moments[np.ix_(order[::-1], order[::-1])])
    diagonal = turned.diagonal().clone()
    while True:
        turned.diagonal().copy_(diagonal + damping * _mean(moments))
        lower, failed = torch.linalg.cholesky_ex(turned)
        if not failed:
            break
        damping *= 10
    del turned
    lower = lower.float()
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower)), upper=False)
    factor: NDArray[np.float32] = np.ascontiguousarray(inverse.numpy()[::-1, ::-1])
    return factor, damping


@dataclass(frozen=True)
class _Problem:
    """What the rows of a matrix have in common.

    `moments` [K, K] are damped. `factor` [K, K] is that of their inverse, and `groups` [K] has the block of each
    column. Both have the columns in their `order`.
    """

    scheme: Scheme
    moments: NDArray[np.float32]
    factor: NDArray[np.float32]
    order: NDArray[np.int64]
    groups: NDArray[np.int64]

    def round_rows(self, weight: NDArray[np.float32], pool: ThreadPoolExecutor) -> QuantizedMatrix:
        """Round rows [n, K]. Each worker takes some of them at a time."""
        n, k = weight.shape
        plain = QuantizedMatrix.rounded(np.ascontiguousarray(weight), self.scheme)
        scales, zeros = plain.scales.astype(np.float32), _zero_codes(plain)
        codes = np.empty((n, k), np.uint8)
        step = min(_ROWS, max(_FEWEST_ROWS, n // _FEWEST_ROWS))
        parts = [slice(at, min(at + step, n)) for at in range(0, n, step)]
        for task in [pool.submit(self.solve, weight[at], scales[at], zeros[at], codes[at]) for at in parts]:
            task.result()
        if self.scheme.positive:
            codes ^= np.uint8(1 << (self.scheme.bits - 1))
        packed = codes if self.scheme.bits == 8 else codes[:, 0::2] | (codes[:, 1::2] << 4)
        return QuantizedMatrix(self.scheme, packed, scales.astype(self.scheme.scale_dtype), plain.zero_points)

    def solve(
        self, weight: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32], codes: np.ndarray
    ) -> None:
        """Solve some rows. Replaces `scales` [n, G] by those that were found, and writes `codes` [n, K], one a byte."""
        from l4export.quantization.gptq_kernel import choose_scales, descend

        block, top = self.scheme.block_size, np.float32((1 << self.scheme.bits) - 1)
        chosen = scales.copy()
        choose_scales(weight, np.diagonal(self.moments).copy(), block, _FACTORS, chosen, zeros, top)
        self._settle(scales, chosen)
        codes[:] = self._round(weight, scales, zeros, top)
        for sweep in range(_SWEEPS):
            if sweep:
                self._settle(scales, self._fit(weight, codes, scales, zeros))
            away = weight - self._values(codes, scales, zeros)
            descend(away, _product(away, self.moments), self.moments, block, scales, zeros, top, codes)

    def _round(
        self, weight: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32], top: np.float32
    ) -> NDArray[np.uint8]:
        """Round by GPTQ itself."""
        from l4export.quantization.gptq_kernel import round_columns

        n, k = weight.shape
        left = np.ascontiguousarray(weight[:, self.order])
        codes, errors = np.empty((n, k), np.uint8), np.empty((n, _COLUMNS), np.float32)
        for start in range(0, k, _COLUMNS):
            stop = min(start + _COLUMNS, k)
            round_columns(left, self.factor, self.groups, scales, zeros, top, codes, errors, start, stop)
            left[:, stop:] -= _product(errors[:, : stop - start], self.factor[start:stop, stop:])
        return codes[:, np.argsort(self.order)]

    def _fit(
        self, weight: NDArray[np.float32], codes: np.ndarray, scales: NDArray[np.float32], zeros: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Find the scales s [n, G] that are best for the codes.

        Let C_g be the steps (code - zero) in block g, and 0 elsewhere. The scales of a row solve
        sum_h (C_g H C_h') s_h = C_g H w' for every g. A block without steps keeps its scale.
        """
        from l4export.quantization.gptq_kernel import block_products

        n, blocks = scales.shape
        size = self.scheme.block_size
        steps = codes.astype(np.float32) - zeros.repeat(size, axis=1)
        left, right, sums = np.empty((n, blocks, blocks)), np.empty((n, blocks)), np.empty((n, blocks))
        for g in range(blocks):  # the matrix is symmetric, so what lies before block g is known
            start, stop = g * size, (g + 1) * size
            product = _product(steps[:, start:stop], self.moments[start:stop, start:])
            block_products(product, steps[:, start:], size, sums[:, g:])
            left[:, g, g:] = left[:, g:, g] = sums[:, g:]
        block_products(_product(weight, self.moments), steps, size, right)
        # a little of the old scales keeps the equations regular, and blocks without steps as they are
        pull = 1e-6 * np.trace(left, axis1=1, axis2=2)[:, None] / blocks + 1e-30
        left[:, np.arange(blocks), np.arange(blocks)] += pull
        fitted = np.linalg.solve(left, (right + pull * scales)[..., None])[..., 0]
        with np.errstate(over="ignore"):
            return fitted.astype(np.float32)

    def _settle(self, scales: NDArray[np.float32], new: NDArray[np.float32]) -> None:
        """Copy `new` into `scales` as it will be stored, except scales that the scheme cannot hold."""
        with np.errstate(over="ignore"):
            stored = new.astype(self.scheme.scale_dtype).astype(np.float32)
        size = stored if self.scheme.positive else np.abs(stored)
        np.copyto(scales, stored, where=np.isfinite(stored) & (size >= _SMALLEST))

    def _values(
        self, codes: np.ndarray, scales: NDArray[np.float32], zeros: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        size = self.scheme.block_size
        values: NDArray[np.float32] = (codes - zeros.repeat(size, axis=1)) * scales.repeat(size, axis=1)
        return values


def _product(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a @ b. Torch computes it, because its threads can be limited to one in each worker."""
    import torch

    result: NDArray[np.float32] = torch.mm(torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(b)).numpy()
    return result


@contextlib.contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """Provide a worker for each core. Each worker uses one thread for matrix products."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _mean(moments: NDArray[np.float64]) -> float:
    """Return the mean of the diagonal, or 1 if all of it is 0, so that damping gives a unit matrix."""
    return float(np.diagonal(moments).mean()) or 1.0


def _zero_codes(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """Return the code that stands for 0 in each block, float32 [N, K / block]."""
    blocks = matrix.scales.shape[1]
    if matrix.zero_points is None:
        return np.full(matrix.scales.shape, 1 << (matrix.scheme.bits - 1), np.float32)
    if matrix.scheme.bits == 8:
        return matrix.zero_points.astype(np.float32)
    nibbles = np.stack([matrix.zero_points & 15, matrix.zero_points >> 4], axis=-1)
    return nibbles.reshape(len(matrix.scales), -1)[:, :blocks].astype(np.float32)
