"""The report of the theory study: three reproductions, tables and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from bilateral_benchmarks.report.files import write
from bilateral_benchmarks.report.tables import Table
from bilateral_benchmarks.studies.provenance import Study
from bilateral_benchmarks.studies.theory.boosting import Boosting, boosting
from bilateral_benchmarks.studies.theory.lipschitz import Lipschitz, softmax_lipschitz
from bilateral_benchmarks.studies.theory.perturbation import (
    KERNELS,
    Perturbation,
    score_perturbation,
)
from bilateral_export.files import atomic_file


class TheoryReport(Study):
    """What one run found, and where it ran."""

    page_title: ClassVar[str] = "Theory, reproduced"

    kind: Literal["theory"] = "theory"
    lipschitz: Lipschitz
    perturbations: tuple[Perturbation, ...]
    boosting: tuple[Boosting, ...]

    def tables(self) -> list[Table]:
        """Return the numbers behind the picture."""
        found = self.lipschitz
        estimates = [
            (
                name,
                *(f"{value:.4f}" for value in getattr(found, name)),
                *(f"{fit.a:.3f}", f"{fit.b:.3f}", f"{fit.r2:.4f}", f"{fit.exponent:.2f}"),
            )
            for name, fit in found.fits.items()
        ]
        worst = ("worst", *(f"{value:.4f}" for value in found.worst), "", "", "", "")
        noise = [
            (run.kernels, what, *(f"{value:.4f}" for value in getattr(run, what)))
            for run in self.perturbations
            for what in ("scores", "weights", "outputs")
        ]
        snr = [(run.scheme, *(f"{value:.2f}" for value in run.snr)) for run in self.boosting]
        return [
            Table(
                "Softmax: estimates by number of logits N",
                ("estimate", *map(str, found.sizes), "a", "b", "R²", "slope"),
                (*estimates, worst),
            ),
            Table(
                "Noise on tokens: scores (RMS, logits), weights (TV), outputs (relative)",
                ("kernels", "what", *map(str, self.perturbations[0].sizes)),
                tuple(noise),
            ),
            Table(
                "SNR in dB by applications of the filter",
                ("scheme", *map(str, range(len(self.boosting[0].snr)))),
                tuple(snr),
            ),
        ]


def reproduce(folder: Path) -> TheoryReport:
    """Compute the reproductions, write theory.json, .md, .html and .png, return the report."""
    report = TheoryReport.model_validate(
        {
            **Study.provenance(),
            "lipschitz": softmax_lipschitz(),
            "perturbations": tuple(score_perturbation(kernels) for kernels in KERNELS),
            "boosting": boosting(),
        }
    )
    write(report, folder / "theory.json")
    plot(report, folder / "theory.png")
    return report


def plot(report: TheoryReport, path: Path) -> None:
    """Three panels, one per claim."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.6))
    _plot_lipschitz(axes[0], report.lipschitz)
    _plot_perturbation(axes[1], report.perturbations)
    _plot_boosting(axes[2], report.boosting)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _plot_lipschitz(axis: Axes, found: Lipschitz) -> None:
    names = {
        "sup_norm": "sup-norm to 2-norm, random",
        "spectral": "2-norm, local (Jacobian)",
        "two_norm": "2-norm, random",
    }
    sizes = np.asarray(found.sizes, dtype=np.float64)
    for colour, (name, label) in zip(("C0", "C1", "C2"), names.items(), strict=True):
        fit = found.fits[name]
        axis.plot(sizes, getattr(found, name), "o", color=colour, markersize=4)
        curve = fit.a / np.sqrt(sizes) + fit.b
        text = f"{label}: {fit.a:.2f}/√N {fit.b:+.3f} (R² {fit.r2:.3f})"
        axis.plot(sizes, np.where(curve > 0, curve, np.nan), color=colour, label=text)
    axis.plot(sizes, found.worst, "k--", label="2-norm, worst logits: 1/2")
    axis.set(xscale="log", yscale="log", xlabel="logits N", title="Softmax: Lipschitz estimates")
    axis.set_ylim(1e-5, 1)  # room for the legend


def _plot_perturbation(axis: Axes, found: Sequence[Perturbation]) -> None:
    for colour, run in zip(("C0", "C1", "C2"), found, strict=True):
        axis.plot(run.sizes, run.scores, "o-", color=colour, label=f"{run.kernels}: scores, RMS")
        axis.plot(run.sizes, run.weights, "s--", color=colour, label=f"{run.kernels}: weights, TV")
    axis.set(xscale="log", xlabel="tokens N", ylim=(0, None), title="Noise on tokens (10 %)")


def _plot_boosting(axis: Axes, found: Sequence[Boosting]) -> None:
    for run in found:
        axis.plot(range(len(run.snr)), run.snr, ".-", label=run.scheme)
    axis.set(
        xlabel="applications of the filter (0: noisy image)",
        ylabel="SNR, dB",
        title="Boosting a bilateral filter",
    )
