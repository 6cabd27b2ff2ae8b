"""Continuing prompts, one token a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from l4export.errors import InputError
from l4export.runtimes.generated_row import GeneratedRow
from l4export.runtimes.new_tokens import NewTokens
from l4export.runtimes.session import Session
from l4export.runtimes.steps import Steps
from l4export.runtimes.text.codec import TextCodec

__all__ = ["BatchGeneration", "Continuation", "Generation"]

Codec = Callable[[], TextCodec]
"""Opens the engine's tokenizer; raises `InputError` where it has none."""


class Continuation:
    """Prompts that are continued in a session, and what has been said.

    The session holds the prompts and every token that was chosen but the last of each row, which is fed when the next
    one is asked for. A step that fails leaves everything as it was, so it can be asked for again. A session that is
    the continuation's own is closed at the end, however long the answer is kept.
    """

    def __init__(self, session: Session, is_own: bool, prompts: NewTokens, rows: Sequence[GeneratedRow]) -> None:
        self.rows = rows
        self._session = session
        self._is_own = is_own
        self._prompts = prompts
        self._state = session.state
        self._is_begun = False
        self._logits: NDArray[np.float32] | None = None

    def step(self) -> list[int | None]:
        """Choose a token for every row that runs; None for the others.

        Raises:
            StopIteration: no row runs.
            InputError: the session was changed meanwhile, or as `Session.append` and `Sampler`.
        """
        if not any(row.runs for row in self.rows):
            raise StopIteration
        if self._session.state is not self._state:
            raise InputError("the session was changed while this generation ran; start another generation")
        if self._logits is None:
            self._logits = self._feed()
        pairs = zip(self.rows, self._logits, strict=True)
        picks = [row.pick(logits) if row.runs else None for row, logits in pairs]
        for row, pick, room in zip(self.rows, picks, self._session.room, strict=True):
            if pick is not None:
                row.take(*pick, is_full=not room)
        self._logits = None
        if self._is_own and not any(row.runs for row in self.rows):
            self._session.close()
        return [None if pick is None else pick[0] for pick in picks]

    def _feed(self) -> NDArray[np.float32]:
        """Feed the prompts, or else the tokens that were chosen last; logits [rows, vocab]."""
        try:
            if not self._is_begun:
                prompts = self._prompts
                logits = self._session.append(prompts.rows, last_only=True, images=prompts.images)[:, 0]
                self._is_begun = True
            else:
                logits = self._session.step([row.tokens[-1] if row.runs else None for row in self.rows])
        finally:  # an append that fails is undone, which makes another state
            self._state = self._session.state
        return logits


class Generation(Steps[int]):
    """The tokens of one answer, computed as they are asked for; made by `Engine.generate`.

    It is an iterator for `for` and for `async for`, which does not block the event loop, and it knows what it has
    given. `text_pieces` iterates over the text instead.
    """

    def __init__(self, continuation: Continuation, codec: Codec) -> None:
        super().__init__()
        self._continuation = continuation
        self._codec = codec

    def _step(self) -> int:
        (token,) = self._continuation.step()
        assert token is not None
        return token

    @property
    def row(self) -> GeneratedRow:
        """What has been computed so far: tokens, log probabilities, why it ended."""
        return self._continuation.rows[0]

    @property
    def finish_reason(self) -> str | None:
        """Why it has ended, see `GeneratedRow`; None while it goes on."""
        return self.row.finish_reason

    @property
    def text(self) -> str:
        """The text so far, without special tokens and what a stop string cuts off.

        Raises:
            InputError: the engine has no tokenizer.
        """
        return "".join(self.row.speak(self._codec()).pieces)

    def text_pieces(self) -> TextPieces:
        """Iterate over the text, in pieces that make `text` together. They take their tokens from this generation.

        Raises:
            InputError: the engine has no tokenizer.
        """
        return TextPieces(self, self.row.speak(self._codec()).pieces)


class TextPieces(Steps[str]):
    """The text of a generation, computed as it is asked for: whole characters, and no part of a stop string."""

    def __init__(self, generation: Generation, pieces: Sequence[str]) -> None:
        super().__init__()
        self._generation = generation
        self._pieces = pieces
        self._given = 0

    def _step(self) -> str:
        while self._given == len(self._pieces):
            next(self._generation)
        self._given += 1
        return self._pieces[self._given - 1]


class BatchGeneration(Steps[list[int | None]]):
    """The tokens of several answers, a list a step, None where a row has ended; made by `Engine.generate_batch`."""

    def __init__(self, continuation: Continuation, codec: Codec) -> None:
        super().__init__()
        self._continuation = continuation
        self._codec = codec

    def _step(self) -> list[int | None]:
        return self._continuation.step()

    @property
    def rows(self) -> Sequence[GeneratedRow]:
        """What has been computed so far of each row."""
        return self._continuation.rows

    @property
    def texts(self) -> list[str]:
        """The text of each row so far; see `Generation.text`."""
        return ["".join(row.speak(self._codec()).pieces) for row in self.rows]
