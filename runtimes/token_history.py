"""The token ids of a row, to which more are added at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenHistory"]


class TokenHistory:
    """A row of token ids that never changes; a longer one shares its memory, so that a token costs no copy.

    One thread at a time may make longer ones of the same memory; reading is free to all.
    """

    def __init__(self, ids: Sequence[int] | NDArray[Any] = ()) -> None:
        self._buffer = np.array(ids, dtype=np.int64)
        self._length = len(self._buffer)
        self._written = [self._length]
        """Up to where anybody has written into the buffer."""

    def __len__(self) -> int:
        return self._length

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 [n], read only."""
        ids = self._buffer[: self._length]
        ids.flags.writeable = False
        return ids

    def extended(self, ids: Sequence[int] | NDArray[np.int64]) -> TokenHistory:
        """With more ids at the end, behind these in their memory if nothing is there yet."""
        longer, end = TokenHistory(), self._length + len(ids)
        longer._length, longer._buffer, longer._written = end, self._buffer, self._written
        if self._written[0] != self._length or end > len(self._buffer):
            longer._buffer, longer._written = np.empty(2 * end, dtype=np.int64), [end]
            longer._buffer[: self._length] = self._buffer[: self._length]
        longer._buffer[self._length : end] = ids
        longer._written[0] = end
        return longer

    def cut(self, length: int) -> TokenHistory:
        """The first `length` of them."""
        shorter = TokenHistory()
        shorter._length, shorter._buffer, shorter._written = length, self._buffer, self._written
        return shorter

    def copy(self) -> TokenHistory:
        """The same in memory of its own."""
        return TokenHistory(self.ids)
