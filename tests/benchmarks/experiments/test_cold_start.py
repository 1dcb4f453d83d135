"""Cold start: every way gives a first answer, and the file's directory stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.builders.exported import exported

from bilateral_benchmarks.experiments.cold_start import ANEW, KEPT, measure_cold_start


@pytest.mark.timing
def test_a_kept_form_answers_sooner(tmp_path_factory: pytest.TempPathFactory) -> None:
    digits = exported("digits_bilateral", tmp_path_factory)
    before = set(digits.parent.iterdir())
    found = measure_cold_start(digits, models=2, rounds=1)
    assert set(digits.parent.iterdir()) == before
    first = {start.name: start.median_s for start in found.starts}
    assert list(first) == [ANEW, KEPT, "served, 2 models"]
    assert first[KEPT] < first[ANEW]
    assert [row[0] for row in found.tables()[0].rows] == list(first)


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    from bilateral_export.errors import UserError

    (tmp_path / "m.onnx").write_text("no model")
    with pytest.raises(UserError, match="is not an ONNX model"):
        measure_cold_start(tmp_path / "m.onnx")
