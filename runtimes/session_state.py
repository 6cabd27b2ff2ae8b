"""What a session is, beside its keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SessionState"]


@dataclass(frozen=True)
class SessionState:
    """All that a session is, beside its keys and values: `Session`'s attributes and `Chunks.held`."""

    capacity: int
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    held: NDArray[np.int64]

    def of(self, rows: list[int]) -> SessionState:
        """The state of some rows."""
        return SessionState(self.capacity, self.lengths[rows], self.starts[rows], self.held[rows])
