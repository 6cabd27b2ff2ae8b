"""The tokens at which an engine departs most from its reference, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l4export.reports.sections import Table

if TYPE_CHECKING:
    from l4export.runtimes.text.codec import TextCodec

__all__ = ["WorstToken", "worst_token", "worst_tokens_table"]

_CONTEXT = 24
_LIKELIEST = 3


@dataclass(frozen=True)
class WorstToken:
    """One of the positions where the engine departs most.

    `context` is the text up to the position, and `following` is the token that came next; it is empty at the end.
    `reference` and `engine` have the three likeliest tokens of each, with their probabilities. Without a tokenizer,
    token ids stand for text.
    """

    window: int
    position: int
    kl: float
    context: str
    following: str
    reference: tuple[tuple[str, float], ...]
    engine: tuple[tuple[str, float], ...]


def worst_token(
    codec: TextCodec | None,
    ids: Sequence[int],
    window: int,
    position: int,
    kl: float,
    reference: NDArray[np.float64],
    engine: NDArray[np.float64],
) -> WorstToken:
    """Describe one position of a window `ids` from the log probabilities [vocab] of both sides."""

    def words(some: Sequence[int]) -> str:
        return " ".join(map(str, some)) if codec is None else codec.decode(some, skip_special_tokens=False)

    def likeliest(side: NDArray[np.float64]) -> tuple[tuple[str, float], ...]:
        best = np.argsort(-side, kind="stable")[:_LIKELIEST].tolist()
        return tuple((words([at]), float(np.exp(side[at]))) for at in best)

    context = words(ids[max(0, position + 1 - _CONTEXT) : position + 1])
    following = words([ids[position + 1]]) if position + 1 < len(ids) else ""
    return WorstToken(window, position, float(kl), context, following, likeliest(reference), likeliest(engine))


def worst_tokens_table(tokens: Iterable[WorstToken]) -> Table:
    """The tokens as a table for a report."""

    def likeliest(side: Iterable[tuple[str, float]]) -> str:
        return ", ".join(f"{_quoted(word)} {100 * share:.0f} %" for word, share in side)

    return Table(
        title="Worst tokens",
        head=("KL", "position", "text so far", "then came", "likeliest by the reference", "by the engine"),
        rows=tuple(
            (
                f"{token.kl:.3g}",
                f"{token.position}" if not token.window else f"{token.position} of window {token.window}",
                _visible(token.context),
                token.following and _quoted(token.following),
                likeliest(token.reference),
                likeliest(token.engine),
            )
            for token in tokens
        ),
        numeric=frozenset({0, 1}),
    )


def _quoted(token: str) -> str:
    return f"\N{LEFT DOUBLE QUOTATION MARK}{_visible(token)}\N{RIGHT DOUBLE QUOTATION MARK}"


def _visible(text: str) -> str:
    """A text in which line ends and other characters without a shape can be seen."""
    shown = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
