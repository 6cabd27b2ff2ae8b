"""Two plots as inline SVG: horizontal bars with intervals, and a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from l4export.reports.confidence import Interval

__all__ = ["bars", "line"]

_WIDTH = 760
_LEFT, _RIGHT = 190, 110
_ROW = 26
_HEIGHT, _BOTTOM = 220, 40
_BAR, _RULE, _INK, _SOFT = "#3b6fb6", "#e4e7ec", "#1c2430", "#667085"
_END, _MIDDLE = 'text-anchor="end"', f'text-anchor="middle" fill="{_SOFT}"'


def bars(rows: Sequence[tuple[str, str, Interval]], axis: str) -> str:
    """Draw one bar for each row (label, remark after the label, figure) from zero, with its interval as a whisker."""
    ticks = _ticks(max((interval.high for _, _, interval in rows), default=0))
    scale = (_WIDTH - _LEFT - _RIGHT) / ticks[-1]
    height = len(rows) * _ROW + _BOTTOM
    parts = [_grid(_LEFT + tick * scale, len(rows) * _ROW, tick) for tick in ticks]
    for index, (label, remark, interval) in enumerate(rows):
        y = index * _ROW
        middle = y + _ROW / 2
        low, value, high = (_LEFT + scale * at for at in (interval.low, interval.value, interval.high))
        title = f"{label}: {interval:.3g}"
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" {_END}>{escape(label)}'
            f'<tspan fill="{_SOFT}"> {escape(remark)}</tspan></text>'
            f'<rect x="{_LEFT}" y="{y + 5}" width="{value - _LEFT:.1f}" height="{_ROW - 10}" fill="{_BAR}"/>'
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8" '
            f'stroke="{_INK}" fill="none"/>'
            f'<text x="{high + 8:.1f}" y="{middle + 4:.1f}">{interval.value:.3g}</text></g>'
        )
    parts.append(f'<text x="{_LEFT}" y="{height - 4}" fill="{_SOFT}">{escape(axis)}</text>')
    return _svg(parts, height)


def line(points: Sequence[tuple[float, float]], across: str, axis: str) -> str:
    """Draw a line through (x, y), with y from zero. `across` says what x is, and `axis` what y is."""
    left, plot = 70, _HEIGHT - _BOTTOM - 20
    ticks = _ticks(max((y for _, y in points), default=0))
    last = max((x for x, _ in points), default=0) or 1
    x_scale, y_scale = (_WIDTH - left - 20) / last, plot / ticks[-1]
    bottom = 20 + plot
    parts = [
        f'<path d="M{left} {bottom - tick * y_scale:.1f}H{_WIDTH - 20}" stroke="{_RULE}"/>'
        f'<text x="{left - 6}" y="{bottom - tick * y_scale + 4:.1f}" {_END}>{tick:g}</text>'
        for tick in ticks
    ]
    path = " ".join(f"{left + x * x_scale:.1f},{bottom - y * y_scale:.1f}" for x, y in points)
    parts.append(f'<polyline points="{path}" stroke="{_BAR}" stroke-width="2" fill="none"/>')
    parts += [
        f'<circle cx="{left + x * x_scale:.1f}" cy="{bottom - y * y_scale:.1f}" r="3" fill="{_BAR}">'
        f"<title>from {x:g}: {y:.3g}</title></circle>"
        for x, y in points
    ]
    steps = [tick for tick in _ticks(last) if tick <= last]
    parts += [f'<text x="{left + x * x_scale:.1f}" y="{bottom + 16}" {_MIDDLE}>{x:g}</text>' for x in steps]
    parts.append(f'<text x="{left}" y="{_HEIGHT - 4}" fill="{_SOFT}">{escape(across)}</text>')
    parts.append(f'<text x="{left - 6}" y="11" fill="{_SOFT}">{escape(axis)}</text>')
    return _svg(parts, _HEIGHT)


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" font-size="12" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _grid(x: float, height: float, tick: float) -> str:
    return (
        f'<path d="M{x:.1f} 0V{height}" stroke="{_RULE}"/><text x="{x:.1f}" y="{height + 14}" {_MIDDLE}>{tick:g}</text>'
    )


def _ticks(most: float) -> list[float]:
    """Return 0 and up to five round numbers in equal steps. The last of them is not below `most`."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * 5 >= most)
    return [float(f"{index * step:.6g}") for index in range(math.ceil(most / step - 1e-9) + 1)]
