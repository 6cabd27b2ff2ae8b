"""What a session is, beside its keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.cache.chunks import Chunks

__all__ = ["SessionState"]


@dataclass(frozen=True)
class SessionState:
    """All that a session is, beside its keys and values.

    Attributes:
        capacity: Tokens that a row can hold.
        lengths: int64 [batch], tokens that each row holds.
        starts: int64 [batch], positions of each row's first token.
        held: int64 [batch], the chunk whose keys lie in each row's caches of one chunk; see `Chunks`.
    """

    capacity: int
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    held: NDArray[np.int64]

    @staticmethod
    def empty(capacity: int, starts: NDArray[np.int64], chunk: int | None) -> SessionState:
        """Without a token; `chunk` is the size of a chunk, None where there are none."""
        return SessionState(capacity, np.zeros_like(starts), starts, Chunks(chunk, starts).held)

    @property
    def ends(self) -> NDArray[np.int64]:
        """int64 [batch], the position of each row's next token."""
        return self.starts + self.lengths

    def of(self, rows: list[int]) -> SessionState:
        """The state of some rows."""
        return SessionState(self.capacity, self.lengths[rows], self.starts[rows], self.held[rows])
