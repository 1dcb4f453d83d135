"""Plots as inline SVG: lines and stacked bars, no script, no library, legible on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#b8860b", "#6a4c93", "#4a4e69", "#e07a5f", "#3d405b")
_WIDTH, _HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 200, 18, 46


@dataclass(frozen=True)
class Plot:
    """A caption and an inline SVG."""

    caption: str
    svg: Markup


@dataclass(frozen=True)
class Line:
    """A named line of points, in the units of the axes."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """A named bar of parts, one after the other; `labels` say what they are."""

    name: str
    parts: Sequence[float]


def line_plot(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    y_zero: bool = False,
) -> Markup:
    """Return lines with axes, ticks and a legend at the right."""
    xs = [value for line in lines for value in line.x]
    ys = [value for line in lines for value in line.y]
    if not xs:
        return Markup()
    x_axis = _Axis(xs, _LEFT, _WIDTH - _RIGHT, log_x)
    y_axis = _Axis([*ys, 0.0] if y_zero else ys, _HEIGHT - _BOTTOM, _TOP, log_y)
    parts = _frame(x_axis, y_axis, x_label, y_label)
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        points = [(x_axis.at(x), y_axis.at(y)) for x, y in zip(line.x, line.y, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= 16:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points
            ]
        parts += _legend(index, line.name, colour)
    return _svg(parts, _HEIGHT)


def bar_plot(bars: Sequence[Bar], labels: Sequence[str], unit: str) -> Markup:
    """Return horizontal bars; with several parts each, stacked, and a legend below."""
    if not bars:
        return Markup()
    left, row = 260, 26
    widest = max(sum(bar.parts) for bar in bars) or 1.0
    scale = (_WIDTH - left - 80) / widest
    parts = []
    for index, bar in enumerate(bars):
        y = 8 + index * row
        parts.append(_text(left - 8, y + 15, bar.name, "end"))
        x = float(left)
        for number, part in enumerate(bar.parts):
            colour = COLOURS[number % len(COLOURS)]
            width = part * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>'
            )
            x += width
        parts.append(_text(x + 6, y + 15, f"{sum(bar.parts):.3g} {unit}", "start"))
    height = 16 + len(bars) * row
    for number, label in enumerate(labels):
        y = height + 16 + number * 18
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{left}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(left + 18, y, label, "start"))
    return _svg(parts, height + 12 + 18 * len(labels))


class _Axis:
    """A linear or logarithmic axis from data to pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self.log = log
        self.start, self.end = start, end
        data = [max(value, 1e-9) if log else value for value in values]
        low, high = min(data), max(data)
        if low == high:
            low, high = low * 0.9, high * 1.1 + 1e-9
        margin = 0.0 if log else 0.03 * (high - low)
        self.low, self.high = low - (margin if low else 0.0), high + margin

    def at(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        return self.start + (self._scaled(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**d for d in decades for m in (1, 2, 5)]
            inside = [tick for tick in found if self.low <= tick <= self.high]
            return inside if len(inside) <= 9 else [t for t in inside if f"{t:e}"[0] == "1"]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (m * step) <= 6)
        first = math.ceil(self.low / step - 1e-9) * step
        return [float(t) for t in np.arange(first, self.high + step * 1e-6, step)]

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-9)) if self.log else value


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        parts.append(_rule(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 16, _tick(tick), "middle"))
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        parts.append(_rule(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(_LEFT - 6, y + 4, _tick(tick), "end"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(_text(middle, _HEIGHT - 8, x_label, "middle"))
    parts.append(
        f'<text x="14" y="{_HEIGHT / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {_HEIGHT / 2:.0f})">{escape(y_label)}</text>'
    )
    return parts


def _legend(index: int, name: str, colour: str) -> list[str]:
    y = _TOP + 12 + 18 * index
    x = _WIDTH - _RIGHT + 12
    mark = f'<rect x="{x}" y="{y - 9}" width="12" height="10" fill="{colour}"/>'
    return [mark, _text(x + 18, y, name, "start")]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _svg(parts: Sequence[str], height: float) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
