"""`bilateral bench score-files`: what its tables say follows from what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_benchmarks.experiments.score_files import (
    Round,
    Run,
    ScoreFiles,
    measure_score_files,
)

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


def measured(workers: int, *pairs: tuple[float, float]) -> Run:
    rounds = [
        Round(
            loop=loop,
            loop_total=loop + 2,
            scoring=scoring,
            total=scoring + 10,
            worker_mib=400,
            loop_mib=350,
        )
        for loop, scoring in pairs
    ]
    return Run(workers=workers, rounds=tuple(rounds))


def test_the_archive_on_paper_follows_from_the_constants() -> None:
    found = ScoreFiles(
        model="m",
        items=10_000,
        runs=(measured(1, (90, 100), (80, 100), (95, 100)), measured(2, (40, 50))),
        plan_s=3.6,
        dispatch_s=0.018,
    )
    runs, paper = found.tables()
    assert [row[3] for row in runs.rows] == ["0.900", "0.800"]  # the median; the goal is 0.9
    assert [row[9] for row in runs.rows] == ["1.00", "1.00"]  # of linear: 100 s, then 50
    assert found.invalid() == ["2 worker(s): 0.800 of the loops, not 0.9"]
    # 0.01 core-seconds each: 10^6 s on one core, shared by 2, 20 and 200.
    hours = [float(row[1]) for row in paper.rows]
    assert hours[0] == pytest.approx((360 + 10 + 500_000) / 3600, rel=0.01)
    assert hours[1] == pytest.approx((360 + 10 + 50_000) / 3600, rel=0.01)
    assert hours[2] == pytest.approx((360 + 10 + 5_000) / 3600, rel=0.01)


@pytest.mark.slow
def test_it_measures_the_real_thing() -> None:
    pytest.importorskip("ray", reason="ray is not installed: the extra [ray]")
    checkpoint = str(CHECKPOINTS / "digits_bilateral.safetensors")
    found = measure_score_files(checkpoint, 200, [1], rounds=1, lowered=False)
    (run,) = found.runs
    (one,) = run.rounds
    assert 0 < one.loop < one.loop_total
    assert 0 < one.scoring < one.total
    assert found.dispatch_s > 0
