"""Which experts a router chooses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["likeliest"]


def likeliest(logits: NDArray[np.float32], count: int, last: bool = False) -> NDArray[np.int64]:
    """The `count` likeliest experts [T, count] by router logits [T, E], the likeliest first. Of equal experts
    the first ones are taken, or the last ones (`last`)."""
    order: NDArray[np.int64] = np.argsort(-logits[:, :: -1 if last else 1], axis=1, kind="stable")[:, :count]
    if last:
        order = logits.shape[1] - 1 - order
    return order
