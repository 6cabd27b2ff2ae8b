"""Which chunk's keys a cache of one chunk holds, row by row: the arithmetic of layout `chunked`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunks"]


class Chunks:
    """Rows of tokens cut into chunks of `size` positions each; None: one chunk without end, which holds everything.

    The token at position p lies in slot p - max(c * size, start) of its row's cache, c = floor(p / size) being its
    chunk and `start` the row's first position. A token of the next chunk takes the first slot again.

    Attributes:
        starts: int64 [batch], position of each row's first token.
        held: int64 [batch], the chunk whose tokens lie in each row's cache.
    """

    def __init__(self, size: int | None, starts: NDArray[np.int64], held: NDArray[np.int64] | None = None) -> None:
        self.size = size or 2**62
        self.starts = starts
        self.held: NDArray[np.int64] = starts // self.size if held is None else held.copy()

    def room(self, position: int) -> int:
        """Tokens from `position` on that one call may take."""
        return self.size - position % self.size

    def write(self, row: int, position: int) -> None:
        """A token at `position` is about to be written."""
        self.held[row] = position // self.size

    def used(self, row: int, end: int) -> int:
        """Slots that hold the tokens before position `end`, none where they belong to another chunk."""
        first = int(self.held[row]) * self.size
        return end - max(first, int(self.starts[row])) if first < end <= first + self.size else 0

    def complete(self, row: int, end: int) -> bool:
        """Whether a row that ends before position `end` has every key that its next token sees."""
        return end % self.size == 0 or end == self.starts[row] or self.used(row, end) > 0

    def loses(self, row: int, end: int, count: int) -> bool:
        """Whether `count` tokens from position `end` on take the place of tokens of a chunk that is not over."""
        return end % self.size != 0 and count > self.room(end)
