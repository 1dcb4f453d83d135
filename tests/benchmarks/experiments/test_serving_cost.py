"""The cost of serving, measured on real servers; how much it is depends on the machine."""

from __future__ import annotations

import pytest

from bilateral_benchmarks.experiments import serving_cost
from bilateral_benchmarks.experiments.document import BenchDocument
from bilateral_benchmarks.report.compare_reports import compare_documents


@pytest.mark.timing
def test_both_ways_are_measured_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_cost, "_TRIES", 1)
    # Under load so shortly that all requests could wait at once: none is refused.
    found = serving_cost.measure_serving_cost(
        "digits_bilateral", rounds=2, seconds=0.5, loaded_s=0.2
    )
    assert [way.name for way in found.ways] == ["direct", "front door"]
    assert set(found.batches) == set(serving_cost.BATCHES)
    assert 0 <= found.disturbed <= found.measured == 2 * (5 + 3) + 2 * 2 + len(found.batches)
    for way in found.ways:
        assert way.p50_ms.value > 0
        assert way.throughput.value > 0
        assert [one.arrivals for one in way.loaded] == list(serving_cost.ARRIVALS)
        assert all(one.floor >= 1 for one in way.loaded)
    cost, loaded, _ = found.tables()
    assert [row[0] for row in cost.rows] == ["in process", "direct", "front door"]
    assert len(loaded.rows) == 4
    document = BenchDocument(title="t", items=(found,))
    verdicts = compare_documents(document, document)
    assert {verdict.judgement for verdict in verdicts} == {"indistinguishable"}
    assert {"p50, ms", "items/s"} <= {verdict.measure for verdict in verdicts}
