"""What a comparison went through, and what it did not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Exercised"]


@dataclass(frozen=True)
class Exercised:
    """One thing that can go wrong in an engine, and whether a comparison would have shown it.

    `how` counts what was gone through, or says why nothing was. `not applicable` is what this engine cannot come to.
    """

    what: str
    status: Literal["exercised", "not exercised", "not applicable"]
    how: str

    @classmethod
    def counted(cls, what: str, count: int, how: str, otherwise: str) -> Exercised:
        """`exercised` if `count` is not 0, described as `how`, else `not exercised`, described as `otherwise`."""
        return cls(what, "exercised", how) if count else cls(what, "not exercised", otherwise)
