"""Thresholds for figures, and what all reports that judge an engine have in common."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from l4export.errors import InputError
from l4export.reports.exercised import Exercised

__all__ = ["AT_LEAST", "Verdict", "Word", "check_thresholds", "finite", "is_missed", "missed"]

AT_LEAST = frozenset({"top1_agreement", "top5_overlap", "greedy_prefix", "ids_agreement", "expert_agreement"})
"""Shares of what agrees, which have a lower limit. Every other figure measures a difference and has an upper limit."""

Word = Literal["passed", "failed", "not judged"]


class Verdict:
    """The base of reports that judge, which are dataclasses.

    `failures` names the missed thresholds in words, `unjudged` says why meeting all of them would prove nothing, and
    `exercised` what the comparison went through and what it did not.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    failures: tuple[str, ...]
    unjudged: tuple[str, ...]
    exercised: tuple[Exercised, ...]

    @property
    def verdict(self) -> Word:
        """`failed` if a threshold was missed, else `not judged` if that proves nothing, else `passed`."""
        return "failed" if self.failures else "not judged" if self.unjudged else "passed"

    @property
    def why(self) -> tuple[str, ...]:
        """Why the verdict is not `passed`, in words."""
        return self.failures or self.unjudged

    @property
    def passed(self) -> bool:
        """Whether the verdict is `passed`. What was not judged has not passed."""
        return self.verdict == "passed"

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict and the fields as JSON values. A figure that is not finite becomes None."""
        found: dict[str, Any] = finite({"verdict": self.verdict, **dataclasses.asdict(self)})
        return found

    def to_json(self) -> str:
        """Return `to_dict` as a JSON document in ASCII."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def check_thresholds(given: Mapping[str, float], known: Collection[str]) -> None:
    """Check thresholds that a person gave.

    Raises:
        InputError: a name is not among those `known`; a number is negative or not finite.
    """
    for name, value in given.items():
        if name not in known:
            raise InputError(f"--threshold {name}: not one of {', '.join(sorted(known))}")
        if not math.isfinite(value) or value < 0:
            raise InputError(f"--threshold {name}={value}: give a finite number of 0 or more")


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot express, by None, within dicts and lists; tuples become lists."""
    match value:
        case dict():
            return {name: finite(item) for name, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value


def missed(figures: Mapping[str, float], thresholds: Mapping[str, float]) -> list[str]:
    """Describe the figures that miss their thresholds, in the order of the thresholds. NaN misses every threshold.

    A figure without a threshold and a threshold without a figure are ignored.
    """
    return [
        f"{name} {figures[name]:.4g}, threshold {limit:g}"
        for name, limit in thresholds.items()
        if name in figures and is_missed(name, figures[name], limit)
    ]


def is_missed(name: str, value: float, limit: float) -> bool:
    """Whether a figure misses its threshold, which is a lower limit for agreements and an upper one for differences."""
    return not (value >= limit if name in AT_LEAST else value <= limit)
