"""What a session is, beside its keys and values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.token_history import TokenHistory

__all__ = ["PlacedImage", "SessionState"]


@dataclass(frozen=True)
class PlacedImage:
    """An image in a row of tokens.

    Attributes:
        start: How many of the row's tokens stand before its first feature.
        stop: How many of them stand up to its last feature.
        digest: As `ProcessedImages` has it. Equal prompts have equal token ids and equal digests.
    """

    start: int
    stop: int
    digest: str


@dataclass(frozen=True)
class SessionState:
    """All that a session is, beside its keys and values.

    Attributes:
        capacity: Tokens that a row can hold.
        lengths: int64 [batch], tokens that each row holds.
        starts: int64 [batch], positions of each row's first token.
        held: int64 [batch], the chunk whose keys lie in each row's caches of one chunk; see `Chunks`.
        images: Of each row, those that it holds, in their order.
        ids: Of each row, the ids of its tokens.
    """

    capacity: int
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64]
    held: NDArray[np.int64]
    images: tuple[tuple[PlacedImage, ...], ...]
    ids: tuple[TokenHistory, ...]

    @staticmethod
    def empty(capacity: int, starts: NDArray[np.int64], chunk: int | None) -> SessionState:
        """Without a token; `chunk` is the size of a chunk, None where there are none."""
        lengths, held, rows = np.zeros_like(starts), Chunks(chunk, starts).held, range(len(starts))
        return SessionState(
            capacity, lengths, starts, held, tuple(() for _ in rows), tuple(TokenHistory() for _ in rows)
        )

    @property
    def ends(self) -> NDArray[np.int64]:
        """int64 [batch], the position of each row's next token."""
        return self.starts + self.lengths

    def of(self, rows: list[int]) -> SessionState:
        """The state of some rows; it shares no memory with this one."""
        images, ids = tuple(self.images[row] for row in rows), tuple(self.ids[row].copy() for row in rows)
        return SessionState(self.capacity, self.lengths[rows], self.starts[rows], self.held[rows], images, ids)

    def with_row(self, row: int, other: SessionState) -> SessionState:
        """The state with a row that is the only one of `other`; its ids become this state's."""
        lengths, held = self.lengths.copy(), self.held.copy()
        lengths[row], held[row] = other.lengths[0], other.held[0]
        images, ids = list(self.images), list(self.ids)
        images[row], ids[row] = other.images[0], other.ids[0]
        return replace(self, lengths=lengths, held=held, images=tuple(images), ids=tuple(ids))
