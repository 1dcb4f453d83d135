"""Three claims about attention, each small enough to hold on every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bilateral_benchmarks.report.files import page
from bilateral_benchmarks.report.machine import Machine
from bilateral_benchmarks.studies.theory.boosting import (
    RANGE_BANDWIDTH,
    SPATIAL_BANDWIDTH,
    Boosting,
    boosting,
    filter_weights,
    photograph,
    snr,
)
from bilateral_benchmarks.studies.theory.lipschitz import (
    Lipschitz,
    jacobian_norm,
    softmax_lipschitz,
)
from bilateral_benchmarks.studies.theory.perturbation import Kernels, score_perturbation
from bilateral_benchmarks.studies.theory.report import TheoryReport, plot

SIZES = (16, 64, 256, 1024)


@pytest.fixture(scope="module")
def lipschitz() -> Lipschitz:
    return softmax_lipschitz(SIZES, trials=50)


@pytest.fixture(scope="module")
def schemes() -> dict[str, Boosting]:
    return {run.scheme: run for run in boosting(side=32, seeds=(0, 1))}


class TestTheSoftmaxsLipschitzEstimate:
    @pytest.mark.parametrize("estimate", ["sup_norm", "spectral"])
    def test_falls_as_a_over_root_n_plus_b(self, lipschitz: Lipschitz, estimate: str) -> None:
        fit = lipschitz.fits[estimate]
        assert fit.r2 > 0.97
        assert fit.a > 0.5
        assert abs(fit.b) < 0.03

    def test_falls_faster_where_the_perturbation_is_measured_by_its_two_norm(
        self, lipschitz: Lipschitz
    ) -> None:
        assert lipschitz.fits["two_norm"].exponent < -0.85

    def test_has_a_worst_case_that_does_not_fall(self, lipschitz: Lipschitz) -> None:
        np.testing.assert_allclose(lipschitz.worst, 0.5, rtol=1e-9)

    def test_never_exceeds_one_half_between_two_norms(self, lipschitz: Lipschitz) -> None:
        assert max(lipschitz.spectral) < 0.5
        assert all(np.less_equal(lipschitz.two_norm, lipschitz.spectral))

    def test_is_the_jacobians_largest_eigenvalue(self) -> None:
        weights = np.random.default_rng(0).dirichlet(np.ones(12), size=5)
        for row in weights:
            expected = np.linalg.eigvalsh(np.diag(row) - np.outer(row, row)).max()
            assert jacobian_norm(row, iterations=2000) == pytest.approx(expected, rel=1e-6)


class TestNoiseOnTokens:
    @pytest.mark.parametrize("kernels", ["dot", "gaussian", "bilateral"])
    def test_moves_scores_and_weights_by_an_amount_that_does_not_vanish_with_n(
        self, kernels: Kernels
    ) -> None:
        found = score_perturbation(kernels, SIZES, trials=2)
        for values in (found.scores, found.weights):
            assert values[-1] > 0.9 * values[0]
            assert values[-1] > 0.005

    def test_moves_a_dot_score_by_the_noise_of_two_tokens(self) -> None:
        """q.k / sqrt(D) with 10 % noise on both: a standard deviation of 0.1 sqrt(2)."""
        found = score_perturbation("dot", (1024,), noise=0.1)
        assert found.scores[0] == pytest.approx(0.1 * 2**0.5, rel=0.05)

    def test_moves_weights_less_where_a_spatial_kernel_holds_them(self) -> None:
        gaussian, bilateral = (
            score_perturbation(kernels, (1024,), trials=2) for kernels in ("gaussian", "bilateral")
        )
        assert bilateral.weights[0] < 0.5 * gaussian.weights[0]

    def test_no_noise_moves_nothing(self) -> None:
        found = score_perturbation("bilateral", (64,), noise=0.0)
        assert (*found.scores, *found.weights, *found.outputs) == (0.0, 0.0, 0.0)


class TestBoosting:
    def test_filtering_once_helps_and_filtering_on_oversmooths(
        self, schemes: dict[str, Boosting]
    ) -> None:
        noisy, once, *_, last = schemes["filter only"].snr
        assert once > noisy + 1
        assert last < once - 2

    def test_every_residual_scheme_ends_above_filtering_on(
        self, schemes: dict[str, Boosting]
    ) -> None:
        filtered_on = schemes["filter only"].last
        others = [run for name, run in schemes.items() if name != "filter only"]
        assert len(others) == 5
        for run in others:
            assert run.last > filtered_on + 0.5, run.scheme

    def test_feeding_the_residual_back_beats_one_filtering(
        self, schemes: dict[str, Boosting]
    ) -> None:
        once = schemes["filter only"].snr[1]
        assert schemes["twicing"].best > once + 0.2
        assert schemes["osher"].best > once + 0.2

    def test_twicing_on_gives_the_noise_back(self, schemes: dict[str, Boosting]) -> None:
        run = schemes["twicing"]
        assert np.argmax(run.snr) in (2, 3)
        assert run.last < run.best - 1

    def test_the_filter_is_the_classical_bilateral_filter(self) -> None:
        image = photograph(6)
        weights = filter_weights(image, 6).numpy()
        rows, columns = np.divmod(np.arange(36), 6)
        squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
        values = image.numpy()
        expected = np.exp(
            -squared / (2 * SPATIAL_BANDWIDTH**2)
            - (values[:, None] - values) ** 2 / (2 * RANGE_BANDWIDTH**2)
        )
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weights, expected, rtol=1e-9)

    def test_snr_ignores_gain_and_offset_and_is_that_of_the_noise(self) -> None:
        generator = torch.Generator().manual_seed(0)
        clean = torch.randn(100_000, generator=generator, dtype=torch.float64)
        noisy = clean + 0.1 * torch.randn(100_000, generator=generator, dtype=torch.float64)
        assert snr(noisy, clean) == pytest.approx(20, abs=0.1)
        assert snr(3 * noisy - 7, clean) == pytest.approx(snr(noisy, clean))


def test_the_report_has_every_number_and_a_picture(
    lipschitz: Lipschitz, schemes: dict[str, Boosting], tmp_path: Path
) -> None:
    kernels: tuple[Kernels, ...] = ("dot", "gaussian", "bilateral")
    report = TheoryReport(
        command="test",
        revision=None,
        machine=Machine.here(),
        lipschitz=lipschitz,
        perturbations=tuple(score_perturbation(k, (16, 64), trials=1) for k in kernels),
        boosting=tuple(schemes.values()),
    )
    assert TheoryReport.model_validate_json(report.model_dump_json()) == report
    text = page(report)
    for name in (*lipschitz.fits, *kernels, *schemes):
        assert f"| {name} |" in text
    plot(report, tmp_path / "theory.png")
    assert Image.open(tmp_path / "theory.png").width > 1000
