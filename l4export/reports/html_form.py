"""A report as one HTML page, without scripts and without anything from the network."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l4export.errors import EnvironmentLacks
from l4export.reports.document import MARK, Document
from l4export.reports.figure import Figure
from l4export.reports.plot_scale import Scale, linear_scale, logarithmic_scale
from l4export.reports.sections import Bars, Counts, Curve

if TYPE_CHECKING:
    import jinja2

__all__ = ["as_html", "check_html"]

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_MOST_MARKS = 64
"""Chunk boundaries that are drawn; more would hide the curve."""


def check_html() -> None:
    """Raise `EnvironmentLacks` if jinja2 is missing."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise EnvironmentLacks("-o: HTML reports need the package jinja2; run `pip install jinja2`") from None


def as_html(document: Document) -> str:
    """The document as a page. Plots have their numbers in tables, which the reader may unfold.

    Raises:
        EnvironmentLacks: jinja2 is missing.
    """
    check_html()
    return _template().render(document=document, mark=MARK, plot=_plot, bars=_bars, used=_used, shades=_shades)


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _used(figure: Figure) -> tuple[float, float]:
    """How far the bar of a demanded figure goes, and where its threshold is marked, in percent of its length.

    A difference ends at 80 % if all that is allowed is used, and an agreement at 100 % if everything agrees.
    """
    value, limit = figure.value, figure.threshold
    if value is None or limit is None:
        return 0.0, 0.0
    if figure.limit == "at least":
        scale = Scale(0.0, max(1.0, limit), ())
        return scale.at(value), scale.at(limit)
    return Scale(0.0, 1.25 * limit or 1.0, ()).at(value), 80.0 if limit else 0.0


def _bars(bars: Bars) -> list[dict[str, Any]]:
    """Each bar with `width`, and `low` and `high` if it has an interval, in percent."""
    scale = linear_scale(value for bar in bars.rows for value in (bar.value, bar.high or 0.0))
    return [
        {
            "bar": bar,
            "width": scale.at(bar.value),
            "low": None if bar.low is None else scale.at(bar.low),
            "high": None if bar.high is None else scale.at(bar.high),
        }
        for bar in bars.rows
    ]


def _plot(curve: Curve) -> dict[str, Any]:
    """The curve in a square of 100 by 100 with y downwards, and the labels of its axes, each with its place."""
    values = [y for _, y in curve.points] + ([] if curve.limit is None else [curve.limit])
    y = (logarithmic_scale if curve.logarithmic else linear_scale)(values)
    first, last = (curve.points[0][0], curve.points[-1][0]) if curve.points else (0.0, 1.0)
    x = Scale(first, last if last > first else first + 1, ())
    steps = [tick for tick in linear_scale([last]).ticks if first <= tick <= last and tick == int(tick)]
    marks = curve.marks if len(curve.marks) <= _MOST_MARKS else ()
    return {
        "path": " ".join(f"{x.at(at):g},{100 - y.at(value):g}" for at, value in curve.points),
        "points": [(x.at(at), 100 - y.at(value)) for at, value in curve.points],
        "marks": [x.at(at) for at in marks],
        "limit": None if curve.limit is None else 100 - y.at(curve.limit),
        "x_ticks": [(x.at(tick), f"{tick:g}") for tick in steps],
        "y_ticks": [(100 - y.at(tick), f"{tick:.3g}") for tick in y.ticks],
    }


def _shades(counts: Counts) -> list[tuple[str, list[tuple[int, float]]]]:
    """Each row with its counts and how dark they are, from 0 to 40 percent: text stays readable."""
    most = max((count for _, row in counts.rows for count in row), default=0) or 1
    return [(label, [(count, round(40 * math.sqrt(count / most), 1)) for count in row]) for label, row in counts.rows]
