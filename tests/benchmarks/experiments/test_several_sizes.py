"""A file of several sizes against files of one: the same answers, and a row for each size."""

from __future__ import annotations

from pathlib import Path

from tests.builders.exported import shallow

from bilateral_benchmarks.experiments.several_sizes import measure_several_sizes
from bilateral_export.checkpoint.load import load_checkpoint

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


def test_each_size_and_batch_has_a_row_of_equal_answers() -> None:
    digits = shallow(load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors"))
    found = measure_several_sizes(digits, [(8, 8), (12, 16)], (1, 2), rounds=1)
    assert [(row.size, row.batch) for row in found.rows] == [
        ((8, 8), 1), ((8, 8), 2), ((12, 16), 1), ((12, 16), 2)
    ]  # fmt: skip
    assert {row.forms for row in found.rows} == {("mask", "mask")}
    assert all(row.difference < 1e-5 and row.ratio > 0 for row in found.rows)
    assert len(found.tables()[0].rows) == 4
    assert len(found.latencies()) == 8
