"""Text from tokens that come one at a time, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from l4export.errors import InputError
from l4export.runtimes.arguments import is_sequence, shown
from l4export.runtimes.text.stream import TextStream

__all__ = ["SpokenText", "checked_stop_strings"]

_MOST_STRINGS = 64
_MOST_CHARACTERS = 1024


def checked_stop_strings(stop_strings: object) -> tuple[str, ...]:
    """The stop strings that a caller gave: a text alone, or a sequence of texts.

    Raises:
        InputError: something else, an empty text, or more of it than anybody needs.
    """
    given = (stop_strings,) if isinstance(stop_strings, str) else stop_strings
    if not is_sequence(given) or not all(isinstance(text, str) and text for text in given):  # type: ignore[attr-defined]
        raise InputError(f"stop_strings is {shown(stop_strings)}: give texts of at least one character")
    strings: tuple[str, ...] = tuple(given)  # type: ignore[arg-type]
    if len(strings) > _MOST_STRINGS or any(len(text) > _MOST_CHARACTERS for text in strings):
        raise InputError(f"stop_strings: at most {_MOST_STRINGS} of at most {_MOST_CHARACTERS} characters can be given")
    return strings


class SpokenText:
    """The text of tokens as they come, which ends before the first stop string.

    That is the one whose last character comes first, of those that end together the longest: where tokens begin and end
    makes no difference. Text that may be the beginning of a stop string is held back, and so is a character of which
    not all bytes have come. Special tokens are no text: they stop as `stop_token_ids`.

    Attributes:
        pieces: What has been given so far; together it is the text.
        found: The stop string that ended it.
    """

    def __init__(self, stream: TextStream, stop_strings: Sequence[str] = ()) -> None:
        self.pieces: list[str] = []
        self.found: str | None = None
        self._stream = stream
        self._stops = stop_strings
        self._held = ""

    def push(self, token: int) -> None:
        """Take a token. Nothing happens after a stop string."""
        self._take(self._stream.push(token))

    def flush(self) -> None:
        """Give what is held back: no more tokens come."""
        self._take(self._stream.flush())
        if self.found is None:
            self._give(self._held)
        self._held = ""

    def _take(self, piece: str) -> None:
        if self.found is not None or not piece:
            return
        text = self._held + piece
        ends = [(at + len(stop), -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            self._give(text[: end - len(self.found)])
            self._held = ""
            return
        held = max((_beginning(text, stop) for stop in self._stops), default=0)
        self._give(text[: len(text) - held])
        self._held = text[len(text) - held :]

    def _give(self, text: str) -> None:
        if text:
            self.pieces.append(text)


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`, and not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((count for count in range(longest, 0, -1) if stop.startswith(text[-count:])), 0)
