"""How fast an engine generated."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["GenerationRecord"]


@dataclass
class GenerationRecord:
    """Notes the tokens of one generation as they pass by, and when each came.

    Times are in seconds; `first_seconds` and `last_seconds` are those of the first and the last token, counted from the
    beginning of generation, so that the first includes the prompt. `load_seconds` is what loading took before.
    """

    prompt_tokens: int
    load_seconds: float = 0.0
    tokens: list[int] = field(default_factory=list)
    first_seconds: float = 0.0
    last_seconds: float = 0.0

    def follow(self, tokens: Iterable[int]) -> Iterator[int]:
        """The same tokens, each noted before it is yielded."""
        began = time.monotonic()
        for token in tokens:
            self.add(token, time.monotonic() - began)
            yield token

    def add(self, token: int, seconds: float) -> None:
        """Note a token that came `seconds` after the beginning."""
        if not self.tokens:
            self.first_seconds = seconds
        self.tokens.append(token)
        self.last_seconds = seconds

    def to_dict(self) -> dict[str, Any]:
        """The figures for a JSON document; a speed is None where no time passed or nothing was decoded."""
        decoded, seconds = len(self.tokens) - 1, self.last_seconds - self.first_seconds
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": len(self.tokens),
            "load_seconds": round(self.load_seconds, 4),
            "time_to_first_token_seconds": round(self.first_seconds, 4),
            "prefill_tokens_per_second": _speed(self.prompt_tokens, self.first_seconds),
            "decode_tokens_per_second": _speed(decoded, seconds),
        }


def _speed(tokens: int, seconds: float) -> float | None:
    return round(tokens / seconds, 2) if tokens and seconds else None
