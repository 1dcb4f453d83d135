"""Bisection holds little in memory, works on any runtime, and leaves something that runs alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.builders.graph_faults import GRAPH_FAULTS, after, batch_of_one
from tests.builders.subjects import Subject

from bilateral_export.errors import UserError
from bilateral_export.lowering.lower import lower
from bilateral_export.parity.bisection.reproducer import write_reproducer
from bilateral_export.parity.bisection.search import Culprit, NodeErrors, bisect, distance
from bilateral_export.parity.bisection.windows import OpenRunner, WindowedRun
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner

FAULT = GRAPH_FAULTS["scale one percent off"]


def _one_thread(path: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(path, threads=1)


def _walk(
    subject: Subject, open_runner: OpenRunner, **options: bool
) -> tuple[onnx.ModelProto, NodeErrors]:
    model = onnx.load(subject.onnx)
    FAULT.apply(model)
    arrays = subject.samples[1].arrays
    return model, bisect(
        model, open_runner, arrays, subject.reference, subject.eager, "fp32", **options
    )


@pytest.fixture(scope="module")
def found(subjects: dict[str, Subject]) -> tuple[onnx.ModelProto, Culprit]:
    model, walk = _walk(subjects["digits"], _one_thread)
    assert walk.culprit is not None
    return model, walk.culprit


def test_the_culprit_says_where_it_is_from(found: tuple[onnx.ModelProto, Culprit]) -> None:
    _, culprit = found
    assert culprit.at.module == "blocks.1.attn"
    assert culprit.at.source.startswith("bilateral_export/models/attention.py:")
    assert culprit.at.operator == "BilateralAttention"
    assert culprit.before < 1e-6 < 1e-4 < culprit.at.error


def test_openvino_finds_the_same_node(subjects: dict[str, Subject]) -> None:
    pytest.importorskip("openvino")
    _, walk = _walk(subjects["digits"], lambda path: OpenVinoRunner(path, threads=1))
    assert walk.culprit is not None
    assert walk.culprit.at.node == FAULT.node


@pytest.mark.parametrize("form", ["mask", "augmented", "decomposed"])
def test_the_module_is_named_in_a_lowered_file_too(
    subjects: dict[str, Subject], tmp_path: Path, form: str
) -> None:
    """One of the nodes that replaced an operator is wrong; the healthy file has none to blame."""
    subject = subjects["digits"]
    lower(subject.onnx, "onnxruntime-cpu", tmp_path / "lowered.onnx", form=form)
    model, arrays = onnx.load(tmp_path / "lowered.onnx"), subject.samples[1].arrays
    oracles = subject.reference, subject.eager
    assert bisect(model, _one_thread, arrays, *oracles, "fp32").culprit is None
    inside = next(
        node.name
        for node in model.graph.node
        if node.op_type in ("Softmax", "MultiHeadAttention")
        and node.name.startswith("blocks.1.attn/")
    )
    after(inside, "Mul", np.float32(1.01))(model)
    walk = bisect(model, _one_thread, arrays, *oracles, "fp32")
    assert walk.culprit is not None
    assert walk.culprit.at.node.startswith("blocks.1.attn/BilateralAttention")
    assert walk.culprit.at.module == "blocks.1.attn"
    assert walk.culprit.at.source.startswith("bilateral_export/models/attention.py:")


def test_a_product_of_token_matrices_is_named_in_a_lowered_file(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """Between attentions a lowered file has matrices, tokens before items, and PyTorch has not."""
    subject = subjects["deeper digits"]
    lower(subject.onnx, "onnxruntime-cpu", tmp_path / "lowered.onnx", form="mask")
    model, product = onnx.load(tmp_path / "lowered.onnx"), "blocks.1.mlp.fc1/MatMul"
    assert any(node.output[0] == f"{product}.matrix" for node in model.graph.node)
    after(product, "Mul", np.float32(1.01))(model)
    oracles = subject.reference, subject.eager
    walk = bisect(model, _one_thread, subject.samples[1].arrays, *oracles, "fp32")
    assert walk.culprit is not None
    assert walk.culprit.at.node == f"{product}/fault"
    assert walk.culprit.at.module == "blocks.1.mlp.fc1"
    assert walk.culprit.before < 1e-6 < 1e-3 < walk.culprit.at.error


@pytest.mark.parametrize("family", ["sequence", "language"])
def test_a_healthy_lowered_file_has_no_culprit(
    subjects: dict[str, Subject], tmp_path: Path, family: str
) -> None:
    subject = subjects[family]
    lower(subject.onnx, "onnxruntime-cpu", tmp_path / "lowered.onnx")
    model, oracles = onnx.load(tmp_path / "lowered.onnx"), (subject.reference, subject.eager)
    walk = bisect(model, _one_thread, subject.samples[1].arrays, *oracles, "fp32")
    assert walk.culprit is None
    assert len(walk.nodes) > 10


@pytest.mark.parametrize("runner", [_one_thread, lambda path: OpenVinoRunner(path, threads=1)])
def test_the_cause_is_named_where_a_later_node_cannot_run(
    subjects: dict[str, Subject], runner: OpenRunner
) -> None:
    """A batch of one is baked in, so that two tensors later on do not fit each other."""
    subject = subjects["digits"]
    model = onnx.load(subject.onnx)
    batch_of_one(model)
    arrays = subject.samples[1].arrays
    oracles = subject.reference, subject.eager
    for to_the_end in (False, True):
        walk = bisect(model, runner, arrays, *oracles, "fp32", to_the_end=to_the_end)
        assert walk.culprit is not None
        assert walk.culprit.at.node == "model/Concat"


def test_a_reproducer_compares_the_output_that_is_wrong(
    subjects: dict[str, Subject], tmp_path: Path
) -> None:
    subject = subjects["digits"]
    model = onnx.load(subject.onnx)
    GRAPH_FAULTS["keys and values swapped after the split"].apply(model)
    arrays = subject.samples[1].arrays
    walk = bisect(model, _one_thread, arrays, subject.reference, subject.eager, "fp32")
    assert walk.culprit is not None
    write_reproducer(tmp_path / "faulty", model, walk.culprit)
    outcome = _run(tmp_path / "faulty")
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr

    repaired = onnx.load(tmp_path / "faulty" / "node.onnx")
    names = repaired.graph.node[0].output
    names[1], names[2] = names[2], names[1]
    onnx.save(repaired, tmp_path / "faulty" / "node.onnx")
    outcome = _run(tmp_path / "faulty")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_openvino_walks_a_graph_with_scalars_and_blames_nothing(
    subjects: dict[str, Subject],
) -> None:
    subject = subjects["language"]
    model, arrays = onnx.load(subject.onnx), subject.samples[1].arrays
    runner = lambda path: OpenVinoRunner(path, threads=1)  # noqa: E731
    walk = bisect(model, runner, arrays, subject.reference, subject.eager, "fp32")
    assert walk.culprit is None


def test_the_walk_stops_at_the_culprit_unless_told_to_go_on(subjects: dict[str, Subject]) -> None:
    _, short = _walk(subjects["digits"], _one_thread)
    _, whole = _walk(subjects["digits"], _one_thread, to_the_end=True)
    assert len(short.nodes) < len(whole.nodes)
    assert whole.nodes[: len(short.nodes)] == short.nodes
    assert whole.culprit is not None
    assert whole.culprit.at.node == FAULT.node


def test_windows_make_what_the_whole_graph_makes_in_a_fraction_of_its_memory(
    subjects: dict[str, Subject],
) -> None:
    subject = subjects["digits"]
    model, arrays = onnx.load(subject.onnx), subject.samples[2].arrays
    everything = WindowedRun(model, _one_thread, limit_bytes=1 << 30)
    little = WindowedRun(model, _one_thread, limit_bytes=1 << 16)
    total = 0
    for window in everything.windows(arrays):
        total += sum(array.nbytes for array in window.outputs.values())
    for window in little.windows(arrays):
        last = window.outputs
    np.testing.assert_allclose(last["logits"], subject.truth.reference["logits"][2], atol=1e-4)
    assert little.peak_bytes < total / 5
    assert little.peak_bytes < everything.peak_bytes


def test_a_reproducer_needs_onnxruntime_only(
    found: tuple[onnx.ModelProto, Culprit], tmp_path: Path
) -> None:
    model, culprit = found
    write_reproducer(tmp_path / "faulty", model, culprit)
    faulty = tmp_path / "faulty"
    assert len(onnx.load(faulty / "node.onnx").graph.node) == 1
    onnx.checker.check_model(str(faulty / "node.onnx"), full_check=True)
    outcome = _run(faulty)
    assert outcome.returncode == 1
    assert "relative error" in outcome.stdout

    # With the scale put right, the same script passes.
    repaired = onnx.load(faulty / "node.onnx")
    for attribute in repaired.graph.node[0].attribute:
        if attribute.name == "scale":
            attribute.f = 0.25
    onnx.save(repaired, faulty / "node.onnx")
    outcome = _run(faulty)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def _run(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the script where this project cannot be imported."""
    script = directory / "reproduce.py"
    text = script.read_text()
    assert "bilateral_export" not in text.partition('"""')[2].partition('"""')[2]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=directory,
    )


def test_a_reproducer_does_not_overwrite(
    found: tuple[onnx.ModelProto, Culprit], tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_reproducer(tmp_path / "taken", *found)


def test_distance_wants_the_same_infinities_and_counts_whole_numbers_that_differ() -> None:
    one = np.array([1.0, -np.inf])
    assert distance(one, one) == 0
    assert distance(np.array([1.0, 5.0]), one) == np.inf
    assert distance(np.array([np.nan, -np.inf]), one) == np.inf
    assert distance(np.array([2.0, -np.inf]), one) == 1
    assert distance(np.array([1, 2]), np.array([1, 2])) == 0
    assert distance(np.array([1, 3]), np.array([1, 2])) == 0.5
    assert distance(np.zeros(2), np.zeros(3)) == np.inf
