"""Thresholds for figures, and what all reports that judge an engine have in common."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from l4export.errors import InputError

__all__ = ["Verdict", "check_thresholds", "missed"]

_AT_LEAST = frozenset({"top1_agreement", "top5_overlap", "greedy_prefix", "ids_agreement"})
"""Shares of what agrees, which have a lower limit. Every other figure measures a difference and has an upper limit."""


class Verdict:
    """The base of reports, which are dataclasses. `failures` names the missed thresholds in words."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every threshold was met."""
        return not self.failures

    def to_json(self) -> str:
        """Return `passed` and the fields as a JSON document in ASCII. A figure that is not finite becomes null."""
        return json.dumps(_finite({"passed": self.passed, **dataclasses.asdict(self)}), indent=1, allow_nan=False)


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


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot express, by None."""
    match value:
        case dict():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
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
        if name in figures and _misses(name, figures[name], limit)
    ]


def _misses(name: str, value: float, limit: float) -> bool:
    return not (value >= limit if name in _AT_LEAST else value <= limit)
