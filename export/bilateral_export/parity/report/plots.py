"""SVG plots of a parity report: error at each node, histograms of units in the last place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from bilateral_export.parity.report.document import NodeError

WIDTH, HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 28


@dataclass(frozen=True)
class _Scale:
    """Where a node and an error lie in the picture; errors are on a logarithmic axis."""

    nodes: int
    low: int
    high: int

    def x(self, number: float) -> float:
        return _LEFT + (number + 0.5) / self.nodes * (WIDTH - _LEFT - _RIGHT)

    def y(self, error: float) -> float:
        power = math.log10(max(error, 10.0**self.low))
        share = (min(power, self.high) - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def layer_plot(nodes: Sequence[NodeError]) -> Markup:
    """Return the plot of the error at each node, with eager PyTorch's and the limit.

    Nodes that are exact lie on the lower edge; infinite errors on the upper one.
    """
    positive = [
        value
        for node in nodes
        for value in (node.error, node.eager_error, node.limit)
        if 0 < value < math.inf
    ]
    low = math.floor(math.log10(min(positive, default=1e-8)))
    high = max(math.ceil(math.log10(max(positive, default=1.0))), low + 1)
    scale = _Scale(len(nodes), low, high)
    parts = [_grid(scale), _block_marks(nodes, scale)]
    parts.append(_line(scale, [node.limit for node in nodes], "limit"))
    parts.append(_line(scale, [node.eager_error for node in nodes], "eager"))
    parts += [_dot(scale, number, node) for number, node in enumerate(nodes)]
    body = Markup("").join(parts)
    return Markup('<svg class="layers" viewBox="0 0 {} {}" role="img">{}</svg>').format(
        WIDTH, HEIGHT, body
    )


def ulp_bars(counts: Sequence[int], edges: Sequence[float]) -> Markup:
    """Return a small histogram; a bar's height is the square root of the share of elements."""
    total = sum(counts) or 1
    bars = []
    for number, count in enumerate(counts):
        height = 30 * math.sqrt(count / total)
        label = f"up to {edges[number]:g}" if number < len(edges) else f"beyond {edges[-1]:g}"
        bars.append(
            Markup(
                '<rect x="{}" y="{:.1f}" width="9" height="{:.1f}"><title>{} units: {}</title>'
                "</rect>"
            ).format(number * 10, 32 - height, height, label, count)
        )
    return Markup('<svg class="ulps" viewBox="0 0 {} 32">{}</svg>').format(
        10 * len(counts), Markup("").join(bars)
    )


def _grid(scale: _Scale) -> Markup:
    lines = []
    step = max(1, (scale.high - scale.low) // 6)
    for power in range(scale.low, scale.high + 1, step):
        y = scale.y(10.0**power)
        lines.append(
            Markup(
                '<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end">1e{}</text>'
            ).format(_LEFT, y, WIDTH - _RIGHT, y, _LEFT - 6, y + 4, power)
        )
    return Markup("").join(lines)


def _block_marks(nodes: Sequence[NodeError], scale: _Scale) -> Markup:
    """Return labels where a new top-level part of the model begins, such as `blocks.3`."""
    marks, previous = [], ""
    for number, node in enumerate(nodes):
        names = node.module.split(".")
        block = ".".join(names[: 2 if names[0] == "blocks" else 1])
        if block.startswith("blocks") and block != previous:
            x = scale.x(number - 0.5)
            marks.append(
                Markup(
                    '<line class="grid" x1="{:.1f}" y1="{}" x2="{:.1f}" y2="{}"/>'
                    '<text x="{:.1f}" y="{}">{}</text>'
                ).format(x, _TOP, x, HEIGHT - _BOTTOM, x + 3, HEIGHT - 10, block)
            )
        previous = block
    return Markup("").join(marks)


def _line(scale: _Scale, errors: Sequence[float], name: str) -> Markup:
    points = " ".join(
        f"{scale.x(number):.1f},{scale.y(error):.1f}" for number, error in enumerate(errors)
    )
    return Markup('<polyline class="{}" points="{}"/>').format(name, points)


def _dot(scale: _Scale, number: int, node: NodeError) -> Markup:
    tip = f"{node.node}: error {node.error:.2e}, eager {node.eager_error:.2e}"
    return Markup(
        '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
    ).format(
        "broken" if node.broken else "node",
        scale.x(number),
        scale.y(node.error),
        4 if node.broken else 2.5,
        escape(tip),
    )
