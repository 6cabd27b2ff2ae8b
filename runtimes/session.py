"""A session: the KV cache of some rows of tokens, and the calls that extend them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError, L4Error
from l4export.manifest import Manifest
from l4export.runtimes.kv_cache import ConcatCache, KVCache, StaticCache

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["Session", "TokenIds"]

TokenIds = Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]


class Session:
    """`batch` rows of tokens, each at its own length. Made by `Engine.session`.

    Attributes:
        lengths: int64 [batch], tokens that each row holds.
        capacity: Tokens that a row can hold.
    """

    def __init__(
        self, inference: onnxruntime.InferenceSession, manifest: Manifest, batch: int, capacity: int | None
    ) -> None:
        limit = manifest.max_context
        if batch < 1:
            raise InputError(f"a session of {batch} rows: give at least one")
        if capacity is not None and not 1 <= capacity <= limit:
            raise InputError(f"a capacity of {capacity} tokens: this engine was built for 1 to {limit} (--max-context)")
        self.batch = batch
        self.capacity = capacity or limit
        self.lengths = np.zeros(batch, dtype=np.int64)
        self._vocab = manifest.model.vocab_size
        self._piece = manifest.prefill_max_tokens
        kind: type[KVCache] = StaticCache if manifest.kv_layout == "static" else ConcatCache
        self._cache = kind(inference, manifest, batch, self.capacity)

    def append(self, token_ids: TokenIds, last_only: bool = False) -> NDArray[np.float32]:
        """Feed new tokens and return their logits.

        Args:
            token_ids: For one row a sequence of ids; for several rows one sequence each, of any lengths. An empty one
                leaves its row as it is.
            last_only: Compute the logits of each row's last new token only; the head is then paid once.

        Returns:
            float32 [batch, n, vocab], n the longest row's new tokens, or 1 with `last_only`. Entries that belong to no
            token (a shorter row's tail, a row without new tokens) are NaN.

        Raises:
            InputError: ids out of range, nothing to feed, or more tokens than `capacity`. The session is as before.
        """
        rows = self._rows(token_ids)
        before = self.lengths.copy()
        mark = self._cache.mark()
        try:
            return self._feed(rows, last_only)
        except BaseException as error:
            self.lengths[:] = before
            self._cache.restore(mark)
            if isinstance(error, Exception) and not isinstance(error, L4Error):
                raise InputError(f"the engine refused the call: {' '.join(str(error).split())[:300]}") from error
            raise

    def reset(self) -> None:
        """Forget every token; the buffers stay."""
        self.lengths[:] = 0
        self._cache.reset()

    def _feed(self, rows: list[NDArray[np.int64]], last_only: bool) -> NDArray[np.float32]:
        """As few calls as are exact: together where the decoder can, else row by row."""
        counts = np.asarray([len(row) for row in rows])
        width = 1 if last_only else int(counts.max())
        logits = np.full((self.batch, width, self._vocab), np.nan, dtype=np.float32)
        done = np.zeros(self.batch, dtype=np.int64)
        if self.batch > 1:
            if counts.max() == 1 and (self.lengths < self.capacity).all():
                self._step(rows, counts, logits)
                return logits
            if counts.min() > 0 and not self.lengths.any():
                done = self._first_piece(rows, counts, logits, last_only)
        for row in range(self.batch):
            while done[row] < counts[row]:
                piece = rows[row][done[row] : done[row] + self._piece]
                self.lengths[row] += len(piece)
                out = self._cache.run(row, piece[None], self.lengths[row : row + 1], last_only)
                at = 0 if last_only else done[row]
                logits[row, at : at + out.shape[1]] = out[0]
                done[row] += len(piece)
        return logits

    def _step(self, rows: list[NDArray[np.int64]], counts: NDArray[Any], logits: NDArray[np.float32]) -> None:
        """One token a row. A row without one is fed a placeholder whose slot its next token overwrites."""
        ids = np.asarray([[row[0] if len(row) else 0] for row in rows], dtype=np.int64)
        out = self._cache.run(None, ids, self.lengths + 1, True)
        self.lengths += counts
        fed = counts > 0
        logits[fed] = out[fed]

    def _first_piece(
        self, rows: list[NDArray[np.int64]], counts: NDArray[Any], logits: NDArray[np.float32], last_only: bool
    ) -> NDArray[np.int64]:
        """The beginnings of all rows in one call, padded on the right; returns how many tokens each row was fed."""
        size = min(int(counts.max()), self._piece)
        done: NDArray[np.int64] = np.minimum(counts, size)
        ids = np.zeros((self.batch, size), dtype=np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : done[row]] = tokens[: done[row]]
        out = self._cache.run(None, ids, done, last_only)
        self.lengths += done
        for row in range(self.batch):
            n = 1 if last_only else done[row]
            logits[row, :n] = out[row, :n]
        return done

    def _rows(self, token_ids: TokenIds) -> list[NDArray[np.int64]]:
        """The new tokens of each row, checked."""
        if not isinstance(token_ids, Sequence | np.ndarray) or isinstance(token_ids, str | bytes):
            raise InputError(f"token ids must be a sequence of integers, not {type(token_ids).__name__}")
        items: list[Any] = list(token_ids)
        nested = bool(items) and isinstance(items[0], Sequence | np.ndarray)
        rows = [_as_array(index, item) for index, item in enumerate(items if nested else [items])]
        if len(rows) != self.batch:
            raise InputError(f"{len(rows)} rows of token ids for a session of {self.batch}: give one sequence a row")
        if not any(row.size for row in rows):
            raise InputError("no token ids to append: give at least one")
        for index, row in enumerate(rows):
            if row.size and (row.min() < 0 or row.max() >= self._vocab):
                bad = row[(row < 0) | (row >= self._vocab)][0]
                raise InputError(f"row {index}: token id {bad} is outside the vocabulary (0 to {self._vocab - 1})")
            if self.lengths[index] + row.size > self.capacity:
                raise InputError(
                    f"row {index}: {self.lengths[index]} + {row.size} tokens are more than the session's capacity of "
                    f"{self.capacity}; shorten the prompt or build with a larger --max-context"
                )
        return [row.astype(np.int64) for row in rows]


def _as_array(index: int, item: Any) -> NDArray[Any]:
    """One row's ids as a flat integer array."""
    try:
        row = np.asarray(item)
    except (TypeError, ValueError):
        row = np.zeros((0, 0))
    if row.dtype == object and row.ndim == 1 and all(type(token) is int for token in row):
        raise InputError(f"row {index}: token id {max(row, key=abs)} is outside the vocabulary")
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise InputError(f"row {index}: token ids must be a flat sequence of integers")
    return row
