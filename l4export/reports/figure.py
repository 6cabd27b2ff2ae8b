"""One figure of a report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from l4export.reports.verdict import AT_LEAST, is_missed

__all__ = ["Figure"]


@dataclass(frozen=True)
class Figure:
    """What was measured under one name in one phase, and what was demanded of it.

    Attributes:
        phase: What it is a figure of, such as `prefill` or `layer 3`.
        name: As thresholds name it.
        label: What a person reads.
        value: None where it could not be measured, which `remark` explains.
        form: How its number is written, in Python's format language.
        unit: `bytes`, `bytes/s` and `share` are written as such; anything else follows the number.
        low: With `high`, the bounds between which it lies with 95 % confidence; None where there are none.
        high: See `low`.
        threshold: What was demanded, or None.
        remark: What else a reader must know.
    """

    phase: str
    name: str
    label: str
    value: float | None
    form: str = ".4g"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    remark: str = ""

    @property
    def limit(self) -> Literal["at least", "at most"]:
        """What a threshold of this figure is."""
        return "at least" if self.name in AT_LEAST else "at most"

    @property
    def status(self) -> Literal["met", "missed", "not demanded", "not measured"]:
        """How it stands to its threshold. A NaN misses."""
        if self.value is None:
            return "not measured"
        if self.threshold is None:
            return "not demanded"
        return "missed" if is_missed(self.name, self.value, self.threshold) else "met"

    @property
    def shown(self) -> str:
        """The value as a person reads it."""
        return "-" if self.value is None else self.written(self.value)

    @property
    def interval(self) -> str:
        """The bounds as a person reads them; empty where there are none."""
        return "" if self.low is None or self.high is None else f"{self.written(self.low)} to {self.written(self.high)}"

    @property
    def demanded(self) -> str:
        """The threshold as a person reads it; empty where nothing is demanded."""
        return "" if self.threshold is None else f"{self.limit} {self.threshold:g}"

    def written(self, value: float) -> str:
        """A value of this figure's unit."""
        match self.unit:
            case "bytes":
                return f"{value / 1e9:.3f} GB" if value >= 10**8 else f"{value / 1e6:.2f} MB"
            case "bytes/s":
                return f"{value / 1e9:.1f} GB/s"
            case "share":
                return f"{value:.0%}"
        return f"{value:{self.form}} {self.unit}".rstrip()

    def to_dict(self) -> dict[str, object]:
        """The fields that a program needs, and `status`."""
        kept = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("form", "remark")}
        return {**kept, "limit": self.limit, "status": self.status, **({"remark": self.remark} if self.remark else {})}
