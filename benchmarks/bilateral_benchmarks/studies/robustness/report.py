"""The report of the robustness study: curves of several models, tables and one picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np

from bilateral_benchmarks.report.tables import Table
from bilateral_benchmarks.studies.provenance import Study
from bilateral_benchmarks.studies.robustness.attacks import ATTACKS, Attack
from bilateral_benchmarks.studies.robustness.curve import TORCH, Curve
from bilateral_export.files import atomic_file

_COLOURS = {"bilateral": "tab:blue", "plain": "tab:orange"}
_LINES = {"GRC": "-", "standard": "--"}


class RobustnessReport(Study):
    """Every curve of one run.

    Attributes:
        curves: One per trained checkpoint.
    """

    page_title: ClassVar[str] = "Accuracy under attack"

    kind: Literal["robustness"] = "robustness"
    curves: tuple[Curve, ...]

    def tables(self) -> list[Table]:
        """Return the torch accuracies, mean and range over seeds, and how the runtimes agree."""
        tables = []
        for attack in ATTACKS:
            accuracy = mean_accuracy(self.curves, attack)
            budgets = sorted({budget for row in accuracy.values() for budget in row})
            columns = ("budget / 255", *(f"{budget:g}" for budget in budgets))
            rows = tuple(
                (kind, *(_cell(row[budget]) for budget in budgets))
                for kind, row in accuracy.items()
            )
            tables.append(Table(attack.upper(), columns, rows))
        tables[-1] = replace(tables[-1], notes=tuple(agreement(self.curves)))
        return tables


def kind_of(curve: Curve) -> str:
    """Return attention and residual connection, by which the models are distinguished."""
    return f"{curve.attention}, {curve.residual}"


def mean_accuracy(
    curves: Sequence[Curve], attack: Attack, runtime: str = TORCH
) -> dict[str, dict[float, list[float]]]:
    """Accuracy of every seed, by kind of model and by budget, budget 0 included."""
    table: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for curve in curves:
        for point in curve.points:
            if point.attack in (None, attack):
                table[kind_of(curve)][point.budget].append(point.accuracy[runtime])
    return {kind: dict(row) for kind, row in table.items()}


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Accuracy against budget, one panel per attack; a band shows the spread over seeds."""
    figure, axes = plt.subplots(1, len(ATTACKS), figsize=(11, 4.5), sharey=True)
    for axis, attack in zip(axes, ATTACKS, strict=True):
        for kind, row in mean_accuracy(curves, attack).items():
            budgets = sorted(budget for budget in row if budget > 0)
            values = [100 * np.array(row[budget]) for budget in budgets]
            attention, residual = kind.split(", ")
            style = {"color": _COLOURS[attention], "linestyle": _LINES[residual]}
            label = f"{kind} (clean {100 * np.mean(row[0.0]):.1f} %)"
            axis.plot(budgets, [v.mean() for v in values], label=label, marker=".", **style)
            lowest, highest = [v.min() for v in values], [v.max() for v in values]
            axis.fill_between(budgets, lowest, highest, color=style["color"], alpha=0.12)
        axis.set_xscale("log", base=2)
        ticks = sorted({p.budget for c in curves for p in c.points if p.attack == attack})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_title(attack.upper())
        axis.set_xlabel("budget, l-infinity, in 255ths of a pixel's range")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("accuracy on held-out digits, %")
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def agreement(curves: Sequence[Curve]) -> list[str]:
    """Return a sentence per runtime: on how many images it decided otherwise than torch."""
    sentences = []
    points = [(curve, point) for curve in curves for point in curve.points]
    for runtime in sorted({name for _, point in points for name in point.other_decisions}):
        asked = [(c.images, p) for c, p in points if runtime in p.other_decisions]
        images = sum(count for count, _ in asked)
        others = sum(point.other_decisions[runtime] for _, point in asked)
        gap = max(abs(p.accuracy[runtime] - p.accuracy[TORCH]) for _, p in asked)
        margin = max(point.margin_of_others for _, point in asked)
        sentences.append(
            f"{runtime}: {others} of {images} decisions differ from torch's"
            + (f" (where its two highest logits are at most {margin:.1e} apart)" if others else "")
            + f"; robust accuracy differs by at most {100 * gap:.2f} points."
        )
    return sentences


def _cell(values: Sequence[float]) -> str:
    mean = f"{100 * np.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.1f}-{100 * max(values):.1f})"
