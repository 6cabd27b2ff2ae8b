"""The decoder calls of one append: as few as are exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.cache.kv_cache import Call, KVCache
from l4export.runtimes.images.feature_rows import FeatureInput, FeatureRows

__all__ = ["Feeding", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What the engine and the session allow.

    Attributes:
        piece: Tokens of a row that one call may take.
        capacity: Tokens that a row can hold.
        context: Positions that there are.
        vocab: Token ids that there are.
        together: Whether one call takes several tokens of several rows, where the cache is empty.
    """

    piece: int
    capacity: int
    context: int
    vocab: int
    together: bool


class Feeding:
    """New tokens of every row on their way through the decoder.

    `lengths` and `chunks` are this object's own; the session takes them over when all calls have succeeded. `features`
    has a row for every image token; None: image tokens are taken by their embedding.

    Attributes:
        lengths: int64 [batch], tokens that each row holds; grows from call to call.
        chunks: Which chunk's keys each row holds; changes from call to call.
    """

    def __init__(
        self,
        cache: KVCache,
        limits: Limits,
        lengths: NDArray[np.int64],
        chunks: Chunks,
        feature_input: FeatureInput | None = None,
        features: Sequence[FeatureRows] | None = None,
    ) -> None:
        self.lengths = lengths
        self.chunks = chunks
        self._cache = cache
        self._limits = limits
        self._batch = len(lengths)
        self._input, self._features = feature_input, features
        # stands where a row has no token; an image token would take another row's features
        self._filler = int(feature_input is not None and feature_input.token == 0)

    def logits(self, rows: Sequence[NDArray[np.int64]], last_only: bool) -> NDArray[np.float32]:
        """Feed the rows together where the decoder can, else row by row; logits as `Session.append` returns them."""
        counts = np.asarray([len(row) for row in rows])
        if self._batch == 1 and counts[0] <= self._at_most(0):
            logits = self._run(0, rows[0][None], counts, last_only)
            self.lengths += counts
            return logits
        width = 1 if last_only else int(counts.max())
        logits = np.full((self._batch, width, self._limits.vocab), np.nan, dtype=np.float32)
        done = np.zeros(self._batch, dtype=np.int64)
        if self._batch > 1:
            # one row of many costs less alone, but for ort-cuda, which has recorded the step of all rows
            several = not self._limits.together or np.count_nonzero(counts) > 1
            if counts.max() == 1 and several and self._all_have_room():
                self._step(rows, counts, logits)
                return logits
            if self._limits.together and counts.min() > 0 and not self.lengths.any():
                done = self._first_piece(rows, counts, logits, last_only)
        for row in range(self._batch):
            while done[row] < counts[row]:
                piece = rows[row][done[row] : done[row] + self._at_most(row)]
                out = self._run(row, piece[None], np.asarray([len(piece)]), last_only)
                self.lengths[row] += len(piece)
                at = 0 if last_only else done[row]
                logits[row, at : at + out.shape[1]] = out[0]
                done[row] += len(piece)
        return logits

    def _all_have_room(self) -> bool:
        """Whether every row can take a token, were it a placeholder."""
        positions = self.chunks.starts + self.lengths
        return bool((self.lengths < self._limits.capacity).all() and (positions < self._limits.context).all())

    def _step(self, rows: Sequence[NDArray[np.int64]], counts: NDArray[Any], logits: NDArray[np.float32]) -> None:
        """One token a row. A row without one is fed a placeholder whose slot its next token overwrites."""
        ids = np.asarray([[row[0] if len(row) else self._filler] for row in rows], dtype=np.int64)
        out = self._run(None, ids, np.ones(self._batch, dtype=np.int64), True)
        self.lengths += counts
        fed = counts > 0
        logits[fed] = out[fed]

    def _first_piece(
        self, rows: Sequence[NDArray[np.int64]], counts: NDArray[Any], logits: NDArray[np.float32], last_only: bool
    ) -> NDArray[np.int64]:
        """The beginnings of all rows in one call, padded on the right; returns how many tokens each row was fed."""
        most = [self._at_most(row) for row in range(self._batch)]
        done: NDArray[np.int64] = np.minimum(counts, most)
        ids = np.full((self._batch, int(done.max())), self._filler, dtype=np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : done[row]] = tokens[: done[row]]
        out = self._run(None, ids, done, last_only)
        self.lengths += done
        for row in range(self._batch):
            n = 1 if last_only else done[row]
            logits[row, :n] = out[row, :n]
        return done

    def _at_most(self, row: int) -> int:
        """How many tokens of a row one call may take: none of the next chunk."""
        return min(self._limits.piece, self.chunks.room(int(self.chunks.starts[row] + self.lengths[row])))

    def _run(
        self, row: int | None, ids: NDArray[np.int64], counts: NDArray[np.int64], last_only: bool
    ) -> NDArray[np.float32]:
        """One decoder call on one row, or on all of them."""
        rows = range(self._batch) if row is None else range(row, row + 1)
        for each in rows:
            self.chunks.write(each, int(self.chunks.starts[each] + self.lengths[each]))
        part, features = slice(rows.start, rows.stop), self._features_of(rows, ids)
        call = Call(row, ids, counts, self.lengths[part], self.chunks.starts[part], last_only, features)
        logits = self._cache.run(call)
        due = (len(rows), 1 if last_only else ids.shape[1], self._limits.vocab)
        if logits.shape != due:
            raise InputError(f"the engine gave logits of shape {logits.shape}, not {due}; build it again")
        return logits

    def _features_of(self, rows: range, ids: NDArray[np.int64]) -> NDArray[Any] | None:
        """What the decoder takes for a call's image tokens, row by row; None where it has no such input."""
        if self._input is None:
            return None
        if self._features is None:
            return self._input.none
        parts = [
            part
            for row, count in zip(rows, (ids == self._input.token).sum(axis=1), strict=True)
            for part in self._features[row].take(int(count))
        ]
        return np.concatenate([self._input.none, *parts])
