"""The rows of a session, the requests in them, and the decoder calls that bring these further."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.images.processor import ProcessedImages
from l4export.runtimes.serving.prefixes import common_beginning
from l4export.runtimes.serving.request import Request
from l4export.runtimes.session import Session

__all__ = ["Rows"]

_WORTH_A_COPY = 16
"""Tokens: to compute fewer takes no longer than to copy a row."""


@dataclass
class _Seat:
    """A row. What a request leaves in it stays until the row is needed, for prompts that begin alike.

    Attributes:
        row: Its number.
        request: Which has it; None where it is free.
        logits: float32 [vocab], for which a token is to be chosen.
        left: When it became free, in requests.
    """

    row: int
    request: Request | None = None
    logits: NDArray[np.float32] | None = None
    left: int = -1


class Rows:
    """Requests side by side, each in a row of a session, which must be used by nobody else.

    Args:
        session: Empty, starting at position 0.
        piece: Prompt tokens between two steps.
        reuse: Whether prompts begin with what rows hold.
    """

    def __init__(self, session: Session, piece: int, reuse: bool) -> None:
        self._session = session
        self._piece = piece
        self._reuse = reuse
        self._seats = [_Seat(row) for row in range(session.batch)]
        self._prompting: deque[_Seat] = deque()
        self._clock = itertools.count()

    @property
    def free(self) -> int:
        """Rows without a request."""
        return sum(seat.request is None for seat in self._seats)

    @property
    def requests(self) -> list[Request]:
        """Those that have a row; any thread may ask."""
        return [request for seat in self._seats if (request := seat.request) is not None]

    def admit(self, request: Request) -> None:
        """Give a request a free row: one that its prompt continues, or else the one that was free for longest."""
        free = [(seat, self._beginning(seat.row, request)) for seat in self._seats if seat.request is None]
        lengths = self._session.lengths
        seat, count = max(free, key=lambda pair: (pair[1] if pair[1] == lengths[pair[0].row] else 0, -pair[0].left))
        try:
            self._cut(seat.row, count)
        except Exception as error:
            request.fail(error)
            return
        request.reuse(count)
        seat.request, seat.logits = request, None
        self._prompting.append(seat)

    def advance(self) -> None:
        """Feed some prompt tokens, then a token of every row that has begun to answer."""
        self._choose()  # what an interruption left
        spent = 0
        while self._prompting and spent < self._piece:
            spent += self._feed(self._prompting[0])
        self._step()

    def fail_all(self, error: Exception) -> None:
        """End every request with an error, and empty all rows.

        Raises:
            L4Error: the session cannot be used any more.
        """
        for seat in self._seats:
            if seat.request is not None:
                seat.request.fail(error)
                seat.request = seat.logits = None
        self._prompting.clear()
        self._session.reset()

    def leave_cancelled(self) -> None:
        """Free the rows of requests that nobody wants."""
        for seat in self._seats:
            if seat.request is not None and seat.request.is_cancelled:
                seat.request.cancel()
                self._leave(seat)

    def _feed(self, seat: _Seat) -> int:
        """Feed a piece of a row's prompt; the number of its tokens."""
        row, request = seat.row, seat.request
        assert request is not None
        try:
            self._copy_longer(row, request)
            ids, images = request.piece(int(self._session.lengths[row]), self._piece)
            tokens: list[NDArray[np.int64]] = [ids[:0]] * self._session.batch
            seen: list[ProcessedImages | None] = [None] * self._session.batch
            tokens[row], seen[row] = ids, images
            logits = self._session.append(tokens, last_only=True, images=seen)
        except Exception as error:
            self._failed([seat], error)
            return 0
        self._prompting.popleft()
        if self._session.lengths[row] < len(request.ids):
            self._prompting.append(seat)
        else:
            seat.logits = logits[row, 0]
            self._choose()
        return len(ids)

    def _step(self) -> None:
        """Feed the last token of every row that has one."""
        tokens: list[int | None] = [None] * self._session.batch
        seats = []
        for seat in self._seats:
            request = seat.request
            if request is not None and request.tokens:
                seats.append(seat)
                tokens[seat.row] = request.tokens[-1]
                if self._session.lengths[seat.row] != len(request.ids) + len(request.tokens) - 1:
                    self._failed([seat], InputError("an interruption came between two tokens; ask again"))
                    return
        if not seats:
            return
        try:
            logits = self._session.step(tokens)
        except Exception as error:
            self._failed(seats, error)
            return
        for seat in seats:
            seat.logits = logits[seat.row]
        self._choose()

    def _choose(self) -> None:
        """Choose a token wherever there are logits."""
        for seat in self._seats:
            if seat.request is not None and seat.logits is not None:
                logits, seat.logits = seat.logits, None
                seat.request.choose(logits, is_full=not self._session.room[seat.row])
                if seat.request.answer.has_ended:
                    self._leave(seat)

    def _leave(self, seat: _Seat) -> None:
        """Free a row; what it holds stays, if there is room for the placeholder that a free row is fed."""
        seat.request, seat.logits, seat.left = None, None, next(self._clock)
        if seat in self._prompting:
            self._prompting.remove(seat)
        if not self._session.room[seat.row]:
            self._cut(seat.row, 0)

    def _failed(self, seats: list[_Seat], error: Exception) -> None:
        """End the requests that a call was about; all of them where the session is not as it was before."""
        try:
            self._session.rewind(0)
        except InputError:
            self.fail_all(error)
            return
        for seat in seats:
            assert seat.request is not None
            seat.request.fail(error)
            self._leave(seat)

    def _copy_longer(self, row: int, request: Request) -> None:
        """Begin with what another row holds, where that is worth it."""
        had = int(self._session.lengths[row])
        count, source = max((self._beginning(other, request), other) for other in range(self._session.batch))
        if source != row and count >= had + _WORTH_A_COPY:
            self._session.copy_row(row, self._session, source)
            self._cut(row, count)
            request.reuse(count - had)

    def _beginning(self, row: int, request: Request) -> int:
        if not self._reuse:
            return 0
        session = self._session
        return common_beginning(session.state, row, session.manifest.prefill_cut, request.ids, request.placed)

    def _cut(self, row: int, length: int) -> None:
        """Let a row go back to its first `length` tokens."""
        counts = np.zeros(self._session.batch, dtype=np.int64)
        counts[row] = self._session.lengths[row] - length
        if counts[row]:
            self._session.rewind(counts.tolist())
