"""Cold start: every way gives a first answer, and the file's directory stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders.exported import exported

from bilateral_benchmarks.experiments.cold_start import (
    ANEW,
    KEPT,
    ColdStart,
    Start,
    measure_cold_start,
)
from bilateral_benchmarks.report.context import Context


def test_each_way_gives_an_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    digits = exported("digits_bilateral", tmp_path_factory)
    before = set(digits.parent.iterdir())
    found = measure_cold_start(digits, models=2, rounds=1)
    assert set(digits.parent.iterdir()) == before
    ways = [ANEW, KEPT, "served, 2 models"]
    assert [start.name for start in found.starts] == ways
    assert all(start.median_s > 0 for start in found.starts)
    assert [row[0] for row in found.tables()[0].rows] == ways
    assert not found.quantities()  # one round bounds nothing


def test_six_rounds_are_compared() -> None:
    start = Start(name=KEPT, first_s=(1.3, 1.2, 1.5, 1.4, 1.6, 1.1))
    found = ColdStart(
        subject="m.onnx", file_bytes=1, models=1, starts=(start,), context=Context.now()
    )
    (median,) = found.quantities()
    assert (median.value, median.low, median.high) == pytest.approx((1300, 1100, 1600))


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    from bilateral_export.errors import UserError

    (tmp_path / "m.onnx").write_text("no model")
    with pytest.raises(UserError, match="is not an ONNX model"):
        measure_cold_start(tmp_path / "m.onnx")
