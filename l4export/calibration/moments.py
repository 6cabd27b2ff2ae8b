"""What a matrix is rounded for: moments of its inputs, and what the float model's inputs are instead.

Rounding everything before a matrix has changed its inputs from y to x. With moments of both at hand the matrix can be
rounded for W y instead of W x (asymmetric calibration: Y. Li et al., "GPTAQ", 2025, arXiv:2504.02692): the weights that
bring W* x nearest to W y are

    W* = W + W S (H + r I)^-1,      H = 2 sum x x',   S = 2 sum (y - x) x'

The ridge r = (K / tokens) mean(diag H) keeps what few tokens say from being taken for a law.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from l4export.errors import InputError

__all__ = ["Moments", "relative_error"]

_ROWS = 4096
"""Rows whose moments are summed in float32 before they are added up in float64."""


class Moments:
    """Of pairs of rows (x, y), each [..., K] float32: `inputs` H and `shift` S, float64 [K, K], and how many there are.

    Raises:
        InputError: activations so large that their moments are not finite.
    """

    def __init__(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.tokens = 0
        pairs = iter(pairs)
        first = next(pairs)
        k = first[0].shape[-1]
        self.inputs: NDArray[np.float64] = np.zeros((k, k))
        self.shift: NDArray[np.float64] = np.zeros((k, k))
        self._add(*first)
        for x, y in pairs:
            self._add(x, y)
        if not (np.isfinite(self.inputs).all() and np.isfinite(self.shift).all()):
            raise InputError("the model's activations on the calibration text are not finite; check the checkpoint")

    def _add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        k = len(self.inputs)
        for rows, others in zip(x.reshape(-1, k).split(_ROWS), y.reshape(-1, k).split(_ROWS), strict=True):
            self.inputs += 2 * (rows.T @ rows).numpy().astype(np.float64)
            self.shift += 2 * ((others - rows).T @ rows).numpy().astype(np.float64)
            self.tokens += len(rows)

    def aim(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """W* [N, K] of a weight W float32 [N, K]: W itself where the inputs are what they were."""
        if not self.shift.any():
            return weight
        damped = torch.from_numpy(self.inputs).float()  # the ridge keeps it regular in float32
        damped.diagonal().add_(damped.diagonal().mean() * max(len(damped) / self.tokens, 1e-3))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return weight
        correction = torch.cholesky_solve(torch.from_numpy(self.shift.T).float(), lower).T
        values = torch.from_numpy(weight)
        aimed: NDArray[np.float32] = torch.addmm(values, values, correction).numpy()
        return aimed


def relative_error(weight: NDArray[np.float32], other: NDArray[np.float32], moments: NDArray[np.float64]) -> float:
    """|W X - W' X| / |W X| from the moments of X, over at most 256 rows of W; 0 where W X is 0."""
    step = -(-len(weight) // 256)
    rows, difference = weight[::step].astype(np.float64), weight[::step].astype(np.float64) - other[::step]
    whole = float(((rows @ moments) * rows).sum())
    return float(np.sqrt(max(0.0, float(((difference @ moments) * difference).sum())) / whole)) if whole else 0.0
