"""What a report shows beside its figures: tables and plots, without any form. Every plot can be read as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from l4export.reports.confidence import Interval

__all__ = ["Bar", "Bars", "Counts", "Curve", "Section", "Table", "by_decade", "histogram", "thinned"]

_SMALLEST = -17
"""The lowest decade that is counted: a KL below 1e-16 is rounding of float64, and stands for 0."""

_MOST_POINTS = 400


@dataclass(frozen=True)
class Table:
    """Rows of text under headings. The columns `numeric` are aligned to the right."""

    kind: ClassVar[str] = "table"
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    numeric: frozenset[int] = frozenset()

    @property
    def table(self) -> Table:
        """Itself: every section has a table."""
        return self


@dataclass(frozen=True)
class Bar:
    """One bar from zero: its label, its value as it is written, and the bounds of its interval, if it has one."""

    label: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, label: str, interval: Interval) -> Bar:
        """A bar with a confidence interval."""
        return cls(label, interval.value, f"{interval.value:.3g}", interval.low, interval.high)


@dataclass(frozen=True)
class Bars:
    """Bars on one scale; `axis` says what their length is."""

    kind: ClassVar[str] = "bars"
    title: str
    rows: tuple[Bar, ...]
    axis: str
    note: str = ""

    @property
    def table(self) -> Table:
        """The same as numbers."""
        rows = tuple(
            (bar.label, bar.shown, "" if bar.low is None or bar.high is None else f"{bar.low:.3g} to {bar.high:.3g}")
            for bar in self.rows
        )
        return Table(self.title, ("", self.axis, "95 % confidence"), rows, self.note, frozenset({1, 2}))


@dataclass(frozen=True)
class Curve:
    """A line through (x, y), by x.

    Attributes:
        title: What it shows.
        points: The line.
        across: What x is.
        axis: What y is.
        logarithmic: Whether y has a logarithmic scale, on which what is not positive lies at the lower end.
        marks: Places on the x axis that are marked.
        marked: What the marks are.
        limit: What was demanded of y, or None.
        note: What else a reader should know.
    """

    kind: ClassVar[str] = "curve"
    title: str
    points: tuple[tuple[float, float], ...]
    across: str
    axis: str
    logarithmic: bool = False
    marks: tuple[float, ...] = ()
    marked: str = ""
    limit: float | None = None
    note: str = ""

    @property
    def table(self) -> Table:
        """The same as numbers."""
        rows = tuple((f"{x:g}", f"{y:.3g}") for x, y in self.points)
        return Table(self.title, (self.across, self.axis), rows, self.note, frozenset({0, 1}))

    @property
    def summary(self) -> str:
        """What can be seen, in words."""
        finite = [point for point in self.points if math.isfinite(point[1])]
        if not finite:
            return f"{self.axis}: nothing to show"
        at, most = max(finite, key=lambda point: point[1])
        least = min(y for _, y in finite)
        limit = "" if self.limit is None else f"; the threshold is {self.limit:g}"
        return f"{self.axis}, from {least:.3g} to {most:.3g}; the largest at {self.across} {at:g}{limit}"


@dataclass(frozen=True)
class Counts:
    """A table of counts, shaded by size: `rows` are a label and its counts, and `head` names the columns."""

    kind: ClassVar[str] = "counts"
    title: str
    corner: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    note: str = ""

    @property
    def table(self) -> Table:
        """The same as text."""
        rows = tuple((label, *map(str, counts)) for label, counts in self.rows)
        return Table(self.title, (self.corner, *self.head), rows, self.note, frozenset(range(1, len(self.head) + 1)))


Section = Table | Bars | Curve | Counts


def by_decade(values: Iterable[float]) -> tuple[tuple[int, int], ...]:
    """Count values, none of them negative, as (decade, count): so many lie from 10^decade up to the next.

    What is below 1e-16 counts with the decade below it. No decade between the first and the last is left out.
    """
    found = [max(_SMALLEST, math.floor(math.log10(value))) if value > 0 else _SMALLEST for value in values]
    counts = Counter(found)
    return tuple((decade, counts[decade]) for decade in range(min(counts), max(counts) + 1)) if counts else ()


def histogram(title: str, decades: Sequence[tuple[int, int]], axis: str) -> Bars:
    """Draw the counts of `by_decade`."""
    labels = {decade: f"1e{decade} to 1e{decade + 1}" for decade, _ in decades} | {
        _SMALLEST: f"below 1e{_SMALLEST + 1}"
    }
    return Bars(title, tuple(Bar(labels[decade], count, str(count)) for decade, count in decades), axis)


def thinned(values: Sequence[float], first: int = 0) -> tuple[tuple[float, float], ...]:
    """Return (position, value) for a curve: of more than 400 values the largest of each stretch."""
    width = -(-len(values) // _MOST_POINTS) or 1
    starts = range(0, len(values), width)
    return tuple((first + at, max(values[at : at + width])) for at in starts)
