"""Small charts as SVG text: lines, histograms and heat maps, for a page that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#805ad5", "#b83280", "#4a5568")
_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 40

Points = Sequence[tuple[float, float]]


def lines(series: Mapping[str, Points], across: str, up: str) -> str:
    """A chart with a line for each series of points (x, y), and a legend above it."""
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    low, high = _bounds([y for _, y in points])
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    last = last if last > first else first + 1
    parts = [_frame((first, last), (low, high), across, up)]
    for color, (name, line) in zip(COLORS * len(series), series.items(), strict=False):
        places = [(_x(x, first, last), _y(y, low, high)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        if len(line) <= 40:
            for (x, y), (step, value) in zip(places, line, strict=True):
                label = f"<title>{escape(name)}, {step:g}: {value:.4g}</title>"
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}">{label}</circle>')
    return _legend(list(series)) + _svg(parts)


def histogram(values: np.ndarray, across: str, bins: int = 30) -> str:
    """How often values of each size come."""
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=min(bins, max(1, int(values.max() - values.min()) + 1)))
    first, last, high = float(edges[0]), float(edges[-1]), float(counts.max())
    parts = [_frame((first, last), (0.0, high), across, "pairs")]
    for count, start, end in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        left, right, top = _x(start, first, last), _x(end, first, last), _y(count, 0, high)
        label = f"<title>{start:.0f} to {end:.0f}: {count:,}</title>"
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(0.5, right - left - 1):.1f}" '
            f'height="{_HEIGHT - _BOTTOM - top:.1f}" fill="{COLORS[0]}">{label}</rect>'
        )
    return _svg(parts)


def heat_map(values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A field of squares (rows, columns), the darker the larger; texts beside and below it."""
    side, left, below = 15, 10 + 7 * max(map(len, rows)), 10 + 7 * max(map(len, columns))
    width, height = left + side * len(columns) + 10, side * len(rows) + below + 6
    highest = float(values.max()) or 1.0
    parts = []
    for r, row in enumerate(rows):
        y = 4 + side * r
        parts.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(row)}</text>')
        for c, column in enumerate(columns):
            value = float(values[r, c])
            label = f"<title>{escape(row)} ← {escape(column)}: {value:.3f}</title>"
            parts.append(
                f'<rect x="{left + side * c}" y="{y}" width="{side - 1}" height="{side - 1}" fill="{COLORS[0]}" '
                f'fill-opacity="{max(0.03, value / highest):.2f}">{label}</rect>'
            )
    for c, column in enumerate(columns):
        x, y = left + side * c + 11, 8 + side * len(rows)
        parts.append(f'<text x="{x}" y="{y}" text-anchor="end" transform="rotate(-90 {x} {y})">{escape(column)}</text>')
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">{inside}</svg>'


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" class="chart" role="img">{"".join(parts)}</svg>'


def _legend(names: Sequence[str]) -> str:
    marks = (
        f'<span><i style="background:{color}"></i>{escape(name)}</span>'
        for color, name in zip(COLORS * len(names), names, strict=False)
    )
    return f'<p class="legend">{"".join(marks)}</p>'


def _x(value: float, first: float, last: float) -> float:
    return _LEFT + (value - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = 0.0 if 0 <= low < 0.5 * high or low == high == 0 else low
    return (low, high) if high > low else (low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1))


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within the bounds.

    >>> _ticks(0, 97)
    [0.0, 20.0, 40.0, 60.0, 80.0]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _frame(x: tuple[float, float], y: tuple[float, float], across: str, up: str) -> str:
    """Axes, their ticks and names."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in _ticks(*y):
        place = _y(value, *y)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:,.6g}</text>')
    for value in _ticks(*x):
        place = _x(value, *x)
        parts.append(f'<text x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{value:,.6g}</text>')
    parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="axis"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    height = (bottom + _TOP) / 2
    parts.append(
        f'<text x="12" y="{height}" text-anchor="middle" transform="rotate(-90 12 {height})">{escape(up)}</text>'
    )
    return "".join(parts)
