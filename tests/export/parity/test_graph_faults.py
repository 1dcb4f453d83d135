"""Every seeded fault of a graph fails the default budget, and bisection names its node."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tests.builders.graph_faults import GRAPH_FAULTS
from tests.builders.subjects import Subject

from bilateral_export.parity.bisection.search import bisect
from bilateral_export.parity.compare import Candidate, judge, outputs_of
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner


def _one_thread(path: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(path, threads=1)


@pytest.mark.parametrize("name", GRAPH_FAULTS)
def test_a_fault_is_caught_and_its_node_named(
    subjects: dict[str, Subject], tmp_path: Path, name: str
) -> None:
    fault = GRAPH_FAULTS[name]
    subject = subjects[fault.model]
    model = onnx.load(subject.onnx)
    fault.apply(model)
    onnx.save(model, tmp_path / "faulty.onnx")
    with _one_thread(tmp_path / "faulty.onnx") as runner:
        outputs = outputs_of(runner, subject.samples)
    rows = judge(Candidate(runner, "fp32"), outputs, subject.truth, subject.samples)
    assert not all(row.passed for row in rows)

    arrays = subject.samples[1].arrays
    walk = bisect(model, _one_thread, arrays, subject.reference, subject.eager, "fp32")
    assert walk.culprit is not None
    assert walk.culprit.at.node == fault.node
    assert walk.culprit.before < walk.culprit.at.error


@pytest.mark.parametrize("model", ["digits", "language", "sequence"])
def test_no_node_of_a_healthy_graph_is_blamed(subjects: dict[str, Subject], model: str) -> None:
    subject = subjects[model]
    graph = onnx.load(subject.onnx)
    arrays = subject.samples[1].arrays
    walk = bisect(graph, _one_thread, arrays, subject.reference, subject.eager, "fp32")
    assert walk.culprit is None
    assert len(walk.nodes) > 0.7 * len(graph.graph.node)


def test_there_are_enough_faults() -> None:
    assert len(GRAPH_FAULTS) >= 25
