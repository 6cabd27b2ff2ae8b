"""Special tokens that a user's text spells out, kept as text: "<|eot|>" typed by a person ends no turn.

It is what transformers does with `sanitize_control_tokens=True`: the tokens are marked in the messages, the template is
rendered, and what is marked is encoded apart, by a tokenizer that knows no special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from l4export.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["SpelledTokens"]

HIGHEST_ID = 1 << 24
"""Largest token id of a tokenizer that is copied: the library counts up to it."""

_START, _END = "\U000f0000", "\U000f0001"
"""Characters for private use, which are removed from the messages first."""


class SpelledTokens:
    """Encodes texts in which no special token is spelled, whatever they say.

    Args:
        tokenizer: The tokenizer; a copy of it is made.
        control_tokens: Ordinary added tokens that are to be text too, if they are among the tokenizer's.

    Raises:
        InputError: a token id that makes copying take too long.
    """

    def __init__(self, tokenizer: Tokenizer, control_tokens: Collection[str]) -> None:
        from tokenizers import Tokenizer as Copy

        if (highest := max(tokenizer.get_vocab().values(), default=0)) > HIGHEST_ID:
            raise InputError(f"tokenizer: has the token id {highest}, at most {HIGHEST_ID} is taken; correct it")
        self._tokenizer = tokenizer
        self._text = Copy.from_str(tokenizer.to_str())
        self._text.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder().items()
        self._text.add_special_tokens([token.content for _, token in added if not token.special])
        self._ids = {token.content: number for number, token in added}
        tokens = [token.content for _, token in added if token.special or token.content in control_tokens]
        pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"
        self._pattern = re.compile(pattern)
        self._marked = re.compile(f"{_START}({pattern}){_END}|[{_START}{_END}]")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text in which all special tokens are text.

        Raises:
            InputError: the tokenizer makes a special token of ordinary text.
        """
        ids = self._text.encode(text, add_special_tokens=False).ids
        self._check(text, ids)
        return list(self._text.encode(text).ids) if add_special_tokens else list(ids)

    def mark(self, value: Any) -> Any:
        """Mark the special tokens in all texts of a JSON value; keys stay as they are."""
        if isinstance(value, str):
            value = value.replace(_START, "").replace(_END, "")
            return self._pattern.sub(f"{_START}\\g<0>{_END}", value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list) else value

    def encode_marked(self, prompt: str) -> list[int]:
        """Return the ids of a prompt that was rendered from marked values.

        Raises:
            InputError: the tokenizer makes a special token of ordinary text.
        """
        ids: list[int] = []
        for index, piece in enumerate(self._marked.split(prompt)):
            if not piece:  # nothing, or None for a mark that a template has separated from its token
                continue
            as_text = index % 2 == 1
            if index:
                found = self._piece(piece, as_text)
            else:
                found = self._tokenizer.encode(piece, add_special_tokens=False).ids
            if as_text:
                self._check(piece, found)
            ids += found
        return ids

    def _piece(self, piece: str, as_text: bool) -> list[int]:
        """Encode a piece from within a text, after a line end: some tokenizers put a space before a text."""
        tokenizer = self._text if as_text else self._tokenizer
        line_end = self._tokenizer.encode("\n", add_special_tokens=False).ids
        ids = tokenizer.encode("\n" + piece, add_special_tokens=False).ids
        if ids[: len(line_end)] == line_end:
            return list(ids[len(line_end) :])
        return list(tokenizer.encode(piece, add_special_tokens=False).ids)

    def _check(self, text: str, ids: Collection[int]) -> None:
        spelled = {self._ids[token] for token in self._pattern.findall(text)}
        if found := spelled.intersection(ids):
            token = self._tokenizer.id_to_token(min(found))
            raise InputError(f"text: the tokenizer makes the special token {token!r} of ordinary text: leave it out")
