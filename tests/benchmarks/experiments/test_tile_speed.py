"""Attention in tiles against dense attention: measured where it applies, refused with a reason."""

from __future__ import annotations

import pytest

from bilateral_benchmarks.experiments.document import BenchDocument
from bilateral_benchmarks.experiments.tile_speed import TileRow, TileSpeed, measure_tile_speed
from bilateral_benchmarks.report.context import Context


def test_both_forms_are_timed_and_their_errors_told() -> None:
    found = measure_tile_speed([1025], [(0.01, "gaussian"), (0.2, "dot")], rounds=1)
    tiled, refused = found.rows
    assert tiled.ratio is not None
    assert tiled.ratio > 0
    assert tiled.tiled_error is not None
    assert tiled.tiled_error <= (tiled.budget or 0)
    assert refused.ratio is None
    assert "every bandwidth is too wide" in refused.refused
    document = BenchDocument(title="Attention in tiles", items=(found,))
    assert BenchDocument.model_validate_json(document.model_dump_json()) == document
    assert {latency.name for latency in found.latencies()} == {
        f"{form}, 1025 tokens, sigma 1 %, gaussian" for form in ("dense", "tiles")
    }


@pytest.mark.parametrize(("ratio", "judged"), [(3.4, "met, 3.40"), (2.9, "missed, 2.90")])
def test_the_goal_is_judged_by_the_ratio(ratio: float, judged: str) -> None:
    row = TileRow(tokens=16_385, sigma=0.02, range_kernel="dot", ratio=ratio)
    found = TileSpeed(layer="one", rows=(row,), context=Context.now())
    (note,) = found.tables()[0].notes
    assert judged in note
