"""A session: the KV cache of some rows of tokens, and the calls that extend them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.errors import InputError, L4Error
from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.cache.kv_cache import Call, NewCache
from l4export.runtimes.saved_session import write_session
from l4export.runtimes.session_state import SessionState

__all__ = ["Session", "TokenIds"]

TokenIds = Sequence[int] | Sequence[Sequence[int]] | NDArray[Any]


class Session:
    """`batch` rows of tokens, each at its own length. Made by `Engine.session`.

    Attributes:
        lengths: int64 [batch], tokens that each row holds.
        starts: int64 [batch], positions of each row's first token: 0, unless `Engine.session` was told otherwise.
        capacity: Tokens that a row can hold.
        manifest: The engine's.
    """

    def __init__(
        self,
        new_cache: NewCache,
        manifest: Manifest,
        batch: int,
        capacity: int | None = None,
        start: int | Sequence[int] = 0,
    ) -> None:
        limit = manifest.max_context
        if batch < 1:
            raise InputError(f"a session of {batch} rows: give at least one")
        if capacity is not None and not 1 <= capacity <= limit:
            raise InputError(f"a capacity of {capacity} tokens: this engine was built for 1 to {limit} (--max-context)")
        self.batch = batch
        self.starts = self._per_row(start, "start")
        if self.starts.min() < 0 or self.starts.max() >= limit:
            raise InputError(f"a start of {start}: this engine has positions 0 to {limit - 1} (--max-context)")
        self.capacity = capacity or limit - int(self.starts.min())
        self.lengths = np.zeros(batch, dtype=np.int64)
        self._new_cache = new_cache
        self.manifest = manifest
        self._limit = limit
        self._vocab = manifest.model.vocab_size
        self._piece = manifest.prefill_max_tokens
        self._chunks = Chunks(manifest.prefill_cut, self.starts)
        try:
            self._cache = new_cache(manifest, batch, self.capacity)
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address has bits
            raise InputError(
                f"no memory for {batch} x {self.capacity} tokens of keys and values; give a smaller capacity or batch"
            ) from error

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 [batch], the position of each row's next token."""
        return self.starts + self.lengths

    @property
    def kv_bytes(self) -> int:
        """Bytes of the buffers that hold keys and values."""
        return self._cache.nbytes

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
        lengths, held, ends = self.lengths.copy(), self._chunks.held.copy(), self.positions
        losing = [row for row in range(self.batch) if self._chunks.loses(row, int(ends[row]), len(rows[row]))]
        mark = self._cache.mark((row, self._chunks.used(row, int(ends[row]))) for row in losing)
        try:
            return self._feed(rows, last_only)
        except BaseException as error:
            self.lengths[:] = lengths
            self._chunks.held[losing] = held[losing]
            self._cache.restore(mark)
            if isinstance(error, Exception) and not isinstance(error, L4Error):
                raise InputError(f"the engine refused the call: {' '.join(str(error).split())[:300]}") from error
            raise

    def rewind(self, tokens: int | Sequence[int]) -> None:
        """Forget the last `tokens` tokens of every row, or so many of each row.

        In layout `chunked` the keys of a chunk are gone when the next one has begun: a row can go back within its
        chunk, and to any chunk's beginning.

        Raises:
            InputError: fewer tokens than that, a negative number, or keys that are gone. The session is as before.
        """
        counts = self._per_row(tokens, "tokens to go back")
        for row, (count, length) in enumerate(zip(counts.tolist(), self.lengths.tolist(), strict=True)):
            if not 0 <= count <= length:
                raise InputError(f"row {row}: cannot go back {count} tokens, it has {length}")
            end = int(self.positions[row]) - count
            if not self._chunks.complete(row, end):
                begin, size = end - end % self._chunks.size, self._chunks.size
                raise InputError(
                    f"row {row}: cannot go back to position {end}, the keys of its chunk are gone; go back to position "
                    f"{max(begin, self.starts[row])} or {begin + size} and append from there"
                )
        self.lengths -= counts

    def fork(self, rows: Sequence[int] | None = None) -> Session:
        """A new session that goes on from here, independent of this one: all rows, or copies of the `rows` named.

        `session.fork([0] * 8)` gives eight rows that begin alike, such as with a system prompt.

        Raises:
            InputError: no rows, a row that is not there, or no memory for another session.
        """
        chosen = range(self.batch) if rows is None else rows
        if not len(chosen) or not all(row in range(self.batch) for row in chosen):
            raise InputError(f"rows {list(chosen)}: give rows of 0 to {self.batch - 1}")
        state, tokens = self.state.of([int(row) for row in chosen]), [self.tokens(int(row)) for row in chosen]
        return Session.restored(self._new_cache, self.manifest, state, tokens)

    def save(self, path: str | Path) -> None:
        """Write the session to a file, which `Engine.load_session` opens; only the slots in use take room there.

        Raises:
            StorageError: writing failed; a file that was there before is as it was.
        """
        write_session(Path(path), self.manifest, self.state, [self.tokens(row) for row in range(self.batch)])

    @classmethod
    def restored(
        cls,
        new_cache: NewCache,
        manifest: Manifest,
        state: SessionState,
        tokens: Sequence[Sequence[NDArray[Any]]],
    ) -> Session:
        """A session in a given state; `tokens` holds for each row what `Session.tokens` gives. They are copied."""
        session = cls(new_cache, manifest, len(state.lengths), state.capacity, state.starts.tolist())
        session.lengths[:] = state.lengths
        session._chunks.held[:] = state.held
        session._cache.fill(tokens)
        return session

    @property
    def state(self) -> SessionState:
        """A copy of everything but the keys and values."""
        return SessionState(self.capacity, self.lengths.copy(), self.starts.copy(), self._chunks.held.copy())

    def reset(self) -> None:
        """Forget every token; the buffers stay."""
        self.lengths[:] = 0
        self._cache.reset()

    def tokens(self, row: int) -> Sequence[NDArray[Any]]:
        """A row's keys and values [kv_heads, tokens, width] in every layer, those that are still there: read only."""
        end = int(self.positions[row])
        return self._cache.tokens(row, int(self.lengths[row]), self._chunks.used(row, end))

    def _feed(self, rows: list[NDArray[np.int64]], last_only: bool) -> NDArray[np.float32]:
        """As few calls as are exact: together where the decoder can, else row by row."""
        counts = np.asarray([len(row) for row in rows])
        if self.batch == 1 and counts[0] <= self._at_most(0):
            logits = self._run(0, rows[0][None], counts, last_only)
            self.lengths += counts
            return logits
        width = 1 if last_only else int(counts.max())
        logits = np.full((self.batch, width, self._vocab), np.nan, dtype=np.float32)
        done = np.zeros(self.batch, dtype=np.int64)
        if self.batch > 1:
            if counts.max() == 1 and (self.lengths < self.capacity).all() and (self.positions < self._limit).all():
                self._step(rows, counts, logits)
                return logits
            if counts.min() > 0 and not self.lengths.any():
                done = self._first_piece(rows, counts, logits, last_only)
        for row in range(self.batch):
            while done[row] < counts[row]:
                piece = rows[row][done[row] : done[row] + self._at_most(row)]
                out = self._run(row, piece[None], np.asarray([len(piece)]), last_only)
                self.lengths[row] += len(piece)
                at = 0 if last_only else done[row]
                logits[row, at : at + out.shape[1]] = out[0]
                done[row] += len(piece)
        return logits

    def _step(self, rows: list[NDArray[np.int64]], counts: NDArray[Any], logits: NDArray[np.float32]) -> None:
        """One token a row. A row without one is fed a placeholder whose slot its next token overwrites."""
        ids = np.asarray([[row[0] if len(row) else 0] for row in rows], dtype=np.int64)
        out = self._run(None, ids, np.ones(self.batch, dtype=np.int64), True)
        self.lengths += counts
        fed = counts > 0
        logits[fed] = out[fed]

    def _first_piece(
        self, rows: list[NDArray[np.int64]], counts: NDArray[Any], logits: NDArray[np.float32], last_only: bool
    ) -> NDArray[np.int64]:
        """The beginnings of all rows in one call, padded on the right; returns how many tokens each row was fed."""
        most = [self._at_most(row) for row in range(self.batch)]
        done: NDArray[np.int64] = np.minimum(counts, most)
        ids = np.zeros((self.batch, int(done.max())), dtype=np.int64)
        for row, tokens in enumerate(rows):
            ids[row, : done[row]] = tokens[: done[row]]
        out = self._run(None, ids, done, last_only)
        self.lengths += done
        for row in range(self.batch):
            n = 1 if last_only else done[row]
            logits[row, :n] = out[row, :n]
        return done

    def _at_most(self, row: int) -> int:
        """How many tokens of a row one call may take: none of the next chunk."""
        return min(self._piece, self._chunks.room(int(self.positions[row])))

    def _run(
        self, row: int | None, ids: NDArray[np.int64], counts: NDArray[np.int64], last_only: bool
    ) -> NDArray[np.float32]:
        """One decoder call on one row, or on all of them."""
        rows = range(self.batch) if row is None else range(row, row + 1)
        for each in rows:
            self._chunks.write(each, int(self.positions[each]))
        part = slice(rows.start, rows.stop)
        return self._cache.run(Call(row, ids, counts, self.lengths[part], self.starts[part], last_only))

    def _per_row(self, value: int | Sequence[int], what: str) -> NDArray[np.int64]:
        """One whole number for every row, or one each."""
        try:
            given = np.asarray(value)
        except ValueError:  # rows of different lengths
            given = np.zeros((0, 0))
        if given.dtype.kind not in "iu" or given.shape not in ((), (self.batch,)):
            raise InputError(f"{what}: give a whole number, or one for each of {self.batch} rows")
        return np.broadcast_to(given, self.batch).astype(np.int64)

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
            if self.positions[index] + row.size > self._limit:
                raise InputError(
                    f"row {index}: {row.size} tokens from position {self.positions[index]} on go beyond the engine's "
                    f"context of {self._limit}; shorten the prompt or build with a larger --max-context"
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
