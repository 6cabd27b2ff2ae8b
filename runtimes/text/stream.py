"""Text from tokens that come one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

__all__ = ["TextStream"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """What a stream needs of a `TextCodec`."""

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some ids."""

    def has_text(self, token: int, skip_special_tokens: bool = True) -> bool:
        """Tell whether a token contributes to decoded text."""


class TextStream:
    """Decodes tokens as they come; the pieces of `push` and the `flush` after them make `decode` of all of the ids.

    A token may end within a character. A decoder shows the bytes of an unfinished character as one U+FFFD at the end,
    so that character, and no other, is held back. Only the last tokens are decoded again, so a push costs the same
    however long the text is: with one byte or more a token and at most three bytes of an unfinished character, four
    tokens of context would do.

    This holds for byte-level BPE, as all Llama 4 models have it. (A "byte fallback" decoder rewrites earlier
    characters when later bytes turn out to be invalid; no stream can follow that.)
    """

    CONTEXT = 8

    def __init__(self, codec: Decoder, skip_special_tokens: bool = True) -> None:
        self._codec = codec
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._sent = 0  # characters of decode(self._ids) that push has returned

    def push(self, token: int) -> str:
        """Add a token and return the text that is complete now; often a word, sometimes nothing."""
        if not self._codec.has_text(token, self._skip):
            return ""
        self._ids.append(int(token))
        text = self._decode()
        complete = max(self._sent, len(text) - text.endswith(UNFINISHED))
        piece, self._sent = text[self._sent : complete], complete
        if len(self._ids) >= 2 * self.CONTEXT:
            held = len(text) - complete
            del self._ids[: -self.CONTEXT]
            self._sent = len(self._decode()) - held
        return piece

    def flush(self) -> str:
        """Return what is held back, finished or not, and start anew."""
        rest = self._decode()[self._sent :]
        self._ids, self._sent = [], 0
        return rest

    def _decode(self) -> str:
        return self._codec.decode(self._ids, skip_special_tokens=self._skip)
