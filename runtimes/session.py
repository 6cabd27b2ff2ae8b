"""A session: the KV cache of some rows of tokens, and the calls that extend them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from l4export.engine.manifest import Manifest
from l4export.errors import InputError, L4Error, one_line
from l4export.runtimes.arguments import a_flag, a_path, a_whole_number, integers, is_sequence, per_row, shown
from l4export.runtimes.cache.chunks import Chunks
from l4export.runtimes.cache.kv_cache import Arrays, KVCache, NewCache
from l4export.runtimes.closing import Closing
from l4export.runtimes.feeding import Feeding, Limits
from l4export.runtimes.images.feature_rows import FeatureInput, FeatureRows
from l4export.runtimes.images.image_features import ImageFeatures
from l4export.runtimes.new_tokens import Images, NewTokens, TokenIds, checked_images, checked_tokens
from l4export.runtimes.one_caller import OneCaller, exclusive
from l4export.runtimes.rewinding import rewound
from l4export.runtimes.saved_session import write_session
from l4export.runtimes.session_state import SessionState

__all__ = ["Session", "TokenIds"]

_MOST_ROWS = 1 << 20


class Session(OneCaller, Closing):
    """`batch` rows of tokens, each at its own length. Made by `Engine.session`, closed by `close` or by `with`.

    One caller at a time: while a method runs, any other call of a method is refused with `InputError`, from whichever
    thread it comes. The attributes can be read at any time; they change at once, when a method has done its work.

    Attributes:
        batch: Rows.
        manifest: The engine's.
    """

    _what = "the session"
    _remedy = "use a session for each thread, or wait for that call to end"

    def __init__(
        self,
        new_cache: NewCache,
        manifest: Manifest,
        batch: int,
        capacity: int | None = None,
        start: int | Sequence[int] = 0,
        features: ImageFeatures | None = None,
    ) -> None:
        super().__init__()
        limit = manifest.max_context
        self.batch = a_whole_number(batch, "batch", 1, _MOST_ROWS)
        if capacity is not None and a_whole_number(capacity, "capacity", 1) > limit:
            raise InputError(f"capacity is {capacity}: this engine was built for 1 to {limit} tokens (--max-context)")
        starts = per_row(start, "start", self.batch)
        if starts.min() < 0 or starts.max() >= limit:
            raise InputError(f"start is {shown(start)}: this engine has positions 0 to {limit - 1} (--max-context)")
        room = limit - int(starts.min()) if capacity is None else int(capacity)
        self._new_cache = new_cache
        self.manifest = manifest
        self._piece = manifest.prefill_max_tokens
        self._features, self._feature_input = features, FeatureInput.of(manifest)
        try:
            self._open_cache: KVCache | None = new_cache(manifest, self.batch, room)
        except (MemoryError, ValueError) as error:  # ValueError: more bytes than an address has bits
            raise InputError(
                f"no memory for {batch} x {room} tokens of keys and values; give a smaller capacity or batch"
            ) from error
        self._set_state(SessionState.empty(room, starts, manifest.prefill_cut))
        self._is_whole = True

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self._state.capacity

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [batch], tokens that each row holds; read only."""
        return self._state.lengths

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64 [batch], positions of each row's first token: 0, unless `Engine.session` was given others."""
        return self._state.starts

    @property
    def positions(self) -> NDArray[np.int64]:
        """int64 [batch], the position of each row's next token."""
        return self._state.ends

    @property
    def room(self) -> NDArray[np.int64]:
        """int64 [batch], tokens that each row can still take."""
        return np.minimum(self.capacity - self.lengths, self.manifest.max_context - self.positions)

    @property
    def token_ids(self) -> tuple[NDArray[np.int64], ...]:
        """Of each row, the ids of its tokens, int64 [n]; read only."""
        return tuple(history.ids for history in self._state.ids)

    @property
    def state(self) -> SessionState:
        """Everything but the keys and values; it never changes, the session gets another one."""
        return self._state

    @property
    def kv_bytes(self) -> int:
        """Bytes of the buffers that hold keys and values."""
        return self._cache.nbytes

    @property
    def _cache(self) -> KVCache:
        if self._open_cache is None:
            raise InputError("the session is closed; start a new one")
        return self._open_cache

    @exclusive
    def append(self, token_ids: TokenIds, last_only: bool = False, images: Images = None) -> NDArray[np.float32]:
        """Feed new tokens and return their logits.

        An append that fails or is interrupted leaves the session as it was. If even that fails, as it may on a lost
        GPU, all further calls are refused but `reset`.

        Args:
            token_ids: For one row a sequence of ids; for several rows one sequence each, of any lengths. An empty one
                leaves its row as it is. Where there are images, the ids have their tokens.
            last_only: Compute the logits of each row's last new token only, so the head is computed once a row.
            images: Those that the new tokens show, whole: what an `ImageProcessor` made, for several rows a sequence
                with that or None for each. The tower computes what the engine does not have yet.

        Returns:
            float32 [batch, n, vocab], n the longest row's new tokens, or 1 with `last_only`. Entries that belong to no
            token (a shorter row's tail, a row without new tokens) are NaN.

        Raises:
            InputError: ids out of range, nothing to feed, more tokens than `capacity`, other images than the ids have
                tokens for, a session in use, or an engine that refuses the call.
        """
        self._check_whole()
        new, last_only = self.checked(token_ids, images), a_flag(last_only, "last_only")
        return self._feed(new, last_only, self._rows_of(new))

    @exclusive
    def step(self, tokens: Sequence[int | None]) -> NDArray[np.float32]:
        """Feed one chosen token a row, None for a row that goes no further; logits float32 [batch, vocab].

        Should a model choose the image token itself, that is taken by its embedding, as in transformers. Otherwise, and
        in what it raises, as `append`.
        """
        self._check_whole()
        if not is_sequence(tokens):
            raise InputError(f"tokens is {shown(tokens)}: give one token id or None for each row")
        rows = checked_tokens([[] if token is None else [token] for token in tokens], self._state, self.manifest)
        return self._feed(NewTokens(rows, [None] * self.batch, [()] * self.batch), True, None)[:, 0]

    def _feed(self, new: NewTokens, last_only: bool, features: Sequence[FeatureRows] | None) -> NDArray[np.float32]:
        """Feed checked tokens; see `append`."""
        rows, before, chunks = new.rows, self._state, self._chunks()
        losing = [row for row in range(self.batch) if chunks.loses(row, int(before.ends[row]), len(rows[row]))]
        manifest = self.manifest
        # attention of ort-cuda engines is told the capacity, not the longest row, and sees no first call of many rows
        together = manifest.decoder.runtime.provider != "cuda"
        limits = Limits(self._piece, self.capacity, manifest.max_context, manifest.model.vocab_size, together)
        feeding = Feeding(self._cache, limits, before.lengths.copy(), chunks, self._feature_input, features)
        mark = self._cache.mark([(row, chunks.used(row, int(before.ends[row]))) for row in losing])
        self._is_whole = False
        try:
            logits = feeding.logits(rows, last_only)
            images = tuple(had + has for had, has in zip(before.images, new.placed, strict=True))
            ids = tuple(had.extended(row) for had, row in zip(before.ids, rows, strict=True))
            self._set_state(replace(before, lengths=feeding.lengths, held=chunks.held, images=images, ids=ids))
        except BaseException as error:
            held = chunks.held.copy()  # of rows whose chunk was over, that chunk is written over
            held[losing] = before.held[losing]
            self._undo(replace(before, held=held), lambda: self._cache.restore(mark), error)
            if isinstance(error, Exception) and not isinstance(error, L4Error):
                raise InputError(f"the engine refused the call: {one_line(error, MemoryError)}") from error
            raise
        self._is_whole = True
        return logits

    def _rows_of(self, new: NewTokens) -> list[FeatureRows] | None:
        """The features of each row's new images; None where no row has any."""
        if self._features is None or not any(new.images):
            return None
        features = self._features
        return [FeatureRows(features.of(images) if images else []) for images in new.images]

    @exclusive
    def rewind(self, tokens: int | Sequence[int]) -> None:
        """Forget the last `tokens` tokens of every row, or another number for each row.

        In layout `chunked` the keys of a chunk are gone when the next one has begun: a row can go back within its
        chunk, and to any chunk's beginning.

        A row cannot go back into an image, of which the tokens that follow would need the rest.

        Raises:
            InputError: fewer tokens than that, a negative number, keys that are gone, the middle of an image, or a
                session in use. The session is as before.
        """
        self._check_whole()
        self._set_state(rewound(self._state, per_row(tokens, "tokens", self.batch), self._chunks()))

    @exclusive
    def fork(self, rows: Sequence[int] | None = None) -> Session:
        """Make a new session that continues from here, independent of this one, with all rows or with copies of `rows`.

        `session.fork([0] * 8)` gives eight rows that begin alike, such as with a system prompt.

        Raises:
            InputError: no rows, a row that is not there, no memory for another session, or a session in use.
        """
        self._check_whole()
        chosen = integers(range(self.batch) if rows is None else rows)
        if chosen is None or chosen.ndim != 1 or not all(0 <= row < self.batch for row in chosen) or not len(chosen):
            raise InputError(f"rows are {shown(rows)}: give rows of 0 to {self.batch - 1}")
        numbers = [int(row) for row in chosen]
        tokens = [self._tokens(row) for row in numbers]
        return Session.restored(self._new_cache, self.manifest, self._state.of(numbers), tokens, self._features)

    @exclusive
    def copy_row(self, row: int, source: Session, source_row: int) -> None:
        """Make a row the copy of a row of this or of another session of the engine, whose rows have the same start.

        With `rewind` this is how a prompt begins with what another one has computed. A copy that fails leaves the
        session as it was; the source is only read.

        Raises:
            InputError: no such row, a session of another engine, another start, more tokens than `capacity`, or a
                session in use.
        """
        self._check_whole()
        row = a_whole_number(row, "row", 0, self.batch - 1)
        if not isinstance(source, Session) or source.manifest != self.manifest:
            raise InputError(f"source is {shown(source)}: give a session of this engine")
        source_row = a_whole_number(source_row, "source_row", 0, source.batch - 1)
        if source is self:
            self._take_row(row, self._state.of([source_row]), self._tokens(source_row))
        else:
            source._lend_row(source_row, partial(self._take_row, row))

    @exclusive
    def _lend_row(self, row: int, take: Callable[[SessionState, Arrays], None]) -> None:
        """Give a row's state and tokens to another session."""
        self._check_whole()
        take(self._state.of([row]), self._tokens(row))

    def _take_row(self, row: int, state: SessionState, tokens: Arrays) -> None:
        """Let a row be that of `state`, which has one; see `copy_row`."""
        before, length, start = self._state, int(state.lengths[0]), int(state.starts[0])
        if start != before.starts[row]:
            raise InputError(
                f"row {row} starts at position {before.starts[row]} and the source at {start}: copy rows of one start"
            )
        if length > self.capacity:
            raise InputError(
                f"the source has {length} tokens, more than this session's capacity of {self.capacity}; rewind it or "
                "give a larger capacity"
            )
        had = [array.copy() for array in self._tokens(row)]
        self._is_whole = False
        try:
            self._cache.put(row, tokens)
            self._set_state(before.with_row(row, state))
        except BaseException as error:
            self._undo(before, lambda: self._cache.put(row, had), error)
            raise
        self._is_whole = True

    @exclusive
    def save(self, path: str | Path) -> None:
        """Write the session to a file, which `Engine.load_session` opens; only the slots in use take room there.

        Raises:
            InputError: a session in use.
            StorageError: writing failed; a file that was there before is as it was.
        """
        self._check_whole()
        tokens = [self._tokens(row) for row in range(self.batch)]
        write_session(a_path(path, "path"), self.manifest, self._state, tokens)

    @classmethod
    def restored(
        cls,
        new_cache: NewCache,
        manifest: Manifest,
        state: SessionState,
        tokens: Sequence[Sequence[NDArray[Any]]],
        features: ImageFeatures | None = None,
    ) -> Session:
        """A session in a given state; `tokens` holds for each row what `Session.tokens` gives. They are copied."""
        session = cls(new_cache, manifest, len(state.lengths), state.capacity, state.starts.tolist(), features)
        session._set_state(state)
        session._cache.fill(tokens)
        return session

    @exclusive
    def reset(self) -> None:
        """Forget every token; the buffers stay. Raises `InputError` for a session in use or closed."""
        cache, self._is_whole = self._cache, False
        cache.reset()
        self._set_state(SessionState.empty(self.capacity, self.starts, self.manifest.prefill_cut))
        self._is_whole = True

    @exclusive
    def close(self) -> None:
        """Free the buffers; then every other method is refused. Raises `InputError` for a session in use."""
        self._open_cache = None

    @exclusive
    def tokens(self, row: int) -> Sequence[NDArray[Any]]:
        """A row's keys and values [kv_heads, tokens, width] in every layer, those that are still there: read only.

        They are good until the next call of a method.

        Raises:
            InputError: no such row, or a session in use.
        """
        self._check_whole()
        return self._tokens(a_whole_number(row, "row", 0, self.batch - 1))

    def checked(self, token_ids: TokenIds, images: Images = None) -> NewTokens:
        """The new tokens and images of each row, as `append` would feed them now.

        Raises:
            InputError: `append` would refuse them.
        """
        _ = self._cache  # refused where the session is closed
        rows = checked_tokens(token_ids, self._state, self.manifest)
        # a graph alone takes any ids as text
        return checked_images(rows, images, self._state, self.manifest.vision if self._features else None)

    def __reduce__(self) -> NoReturn:
        """Refuse `copy` and `pickle`: two sessions would write into one cache."""
        raise InputError("a session cannot be copied or pickled: use fork for a copy, save for a file")

    def _tokens(self, row: int) -> Sequence[NDArray[Any]]:
        used = self._chunks().used(row, int(self.positions[row]))
        return self._cache.tokens(row, int(self.lengths[row]), used)

    def _chunks(self) -> Chunks:
        """Which chunk's keys each row holds, as the state has it: a copy that may be written."""
        return Chunks(self.manifest.prefill_cut, self.starts, self._state.held)

    def _set_state(self, state: SessionState) -> None:
        """Replace the state in one step, so that nobody sees it half done."""
        for array in (state.lengths, state.starts, state.held):
            array.flags.writeable = False
        self._state = state

    def _undo(self, before: SessionState, restore: Callable[[], None], error: BaseException) -> None:
        """Go back to the state before a call that failed with `error`; `restore` does so for the cache."""
        try:
            self._set_state(before)
            restore()
        except Exception as second:
            raise InputError(
                f"a call failed ({one_line(error)}) and could not be undone ({one_line(second)}); "
                "reset the session or start a new one"
            ) from error
        self._is_whole = True

    def _check_whole(self) -> None:
        _ = self._cache  # refused where the session is closed
        if not self._is_whole:
            raise InputError("the session is unusable: a call was left half done; reset it or start a new one")
