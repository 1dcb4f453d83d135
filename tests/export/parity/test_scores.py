"""Labels hide faults: the scores behind them are judged, and labels alone by their margin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tests.builders.graph_faults import Spoiled, after, set_attribute

from bilateral_export.artifact import read_metadata
from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.registry import build, named
from bilateral_export.parity.compare import Candidate
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.matrix import ParityJob, run_matrix
from bilateral_export.parity.report.document import ParityReport
from bilateral_export.parity.scores import expose_scores, grid, tipped, with_scores
from bilateral_export.parity.stages import Stage, stages
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

STAGE = "onnxruntime CPU, fp32 file"


@dataclass(frozen=True)
class Segmented:
    checkpoint: Checkpoint
    onnx: Path
    samples: list[Sample]


def _exported(folder: Path, image_size: int, depth: int) -> Segmented:
    config = named("segmenter_tiny").model_copy(
        update={
            "image_size": image_size,
            "patch_size": 8,
            "dim": 48,
            "depth": depth,
            "num_classes": 7,
            "attention": AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
        }
    )
    torch.manual_seed(0)
    card = CheckpointCard(name="segmenter", model=config)
    checkpoint = Checkpoint(folder, "0" * 64, card, build(config).state_dict())
    export_onnx(checkpoint, folder / "segmenter.onnx")
    samples = random_samples(checkpoint.build_model(), (1, 8))
    return Segmented(checkpoint, folder / "segmenter.onnx", samples)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmented:
    return _exported(tmp_path_factory.mktemp("segmenter"), 48, depth=3)


def _judged(
    segmenter: Segmented, path: Path, scratch: Path, layers: bool = False, labels_only: bool = False
) -> ParityReport:
    made, _ = stages(segmenter.checkpoint, path, "fp32", scratch, compiled=False)
    (stage,) = [stage for stage in made if stage.candidate.name == STAGE]
    if labels_only:
        runner = Spoiled(OnnxRuntimeRunner(path))
        stage = Stage(Candidate(runner, "fp32", stage=STAGE))
    return run_matrix(
        ParityJob(
            segmenter.checkpoint,
            [stage],
            segmenter.samples,
            read_metadata(path),
            path,
            layers=layers,
            bisect=layers,
        )
    )


def _gelu_by_tanh(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Gelu":
            set_attribute(node.name, "approximate", "tanh")(model)


def _scale_off(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f *= 1.001


def _weights_through_half(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            narrow = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(narrow, tensor.name))


FAULTS = (_gelu_by_tanh, _scale_off, _weights_through_half)


@pytest.mark.parametrize("labels_only", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_hides_behind_labels_is_found(
    segmenter: Segmented,
    tmp_path: Path,
    fault: Callable[[onnx.ModelProto], None],
    labels_only: bool,
) -> None:
    """Fewer labels differ than a row of labels by itself lets."""
    model = onnx.load(segmenter.onnx)
    fault(model)
    onnx.save(model, tmp_path / "faulty.onnx")
    report = _judged(segmenter, tmp_path / "faulty.onnx", tmp_path, labels_only=labels_only)
    rows = {row.output: row for row in report.rows}
    labels = rows["classes"]
    assert labels.error <= labels.budget
    assert labels.decision is not None
    assert labels.decision.flipped > 0
    assert not report.passed
    if labels_only:
        (skipped,) = report.skipped
        assert skipped.stage == f"{STAGE}, classes.scores"
    else:
        assert not rows["classes.scores"].passed


@pytest.mark.parametrize("labels_only", [False, True])
def test_a_healthy_segmenter_passes(
    segmenter: Segmented, tmp_path: Path, labels_only: bool
) -> None:
    layers = not labels_only
    report = _judged(segmenter, segmenter.onnx, tmp_path, layers=layers, labels_only=labels_only)
    assert report.passed, [row.reason for row in report.rows]
    for found in report.bisections:
        assert found.culprit is None


def test_a_node_beyond_its_limit_is_not_a_pass(segmenter: Segmented, tmp_path: Path) -> None:
    """What only a layer norm reads may be a thousandth too large, and no output shows it."""
    model = onnx.load(segmenter.onnx)
    norm = next(node for node in model.graph.node if node.name.startswith("decoder.decoder_norm/"))
    last = next(node for node in model.graph.node if norm.input[0] in node.output)
    after(last.name, "Mul", np.float32(1.001))(model)
    onnx.save(model, tmp_path / "scaled.onnx")
    assert _judged(segmenter, tmp_path / "scaled.onnx", tmp_path).passed
    report = _judged(segmenter, tmp_path / "scaled.onnx", tmp_path, layers=True)
    assert all(row.passed for row in report.rows)
    (failed,) = [check for check in report.checks if not check.passed]
    assert failed.name == "node by node"
    assert failed.detail.startswith(f"{last.name}/fault is off by 1.0e-03")


def test_scores_are_shown_without_a_change_to_the_labels(tmp_path: Path) -> None:
    """Of an image of more pixels than the grid of scores has."""
    segmenter = _exported(tmp_path, 72, depth=1)
    shown = expose_scores(segmenter.onnx, with_scores(segmenter.checkpoint), tmp_path / "s.onnx")
    arrays = segmenter.samples[0].arrays
    with OnnxRuntimeRunner(segmenter.onnx) as plain, OnnxRuntimeRunner(shown) as scored:
        np.testing.assert_array_equal(plain.run(arrays)["classes"], scored.run(arrays)["classes"])
        assert scored.run(arrays)["classes.scores"].shape == (1, 7, 64, 64)


def test_labels_from_nothing_that_is_known_are_judged_alone(
    segmenter: Segmented, tmp_path: Path
) -> None:
    model = onnx.load(segmenter.onnx)
    zero = numpy_helper.from_array(np.array(0), "nothing")
    model.graph.initializer.append(zero)
    cast = next(node for node in model.graph.node if "classes" in node.output)
    model.graph.node.insert(
        len(model.graph.node) - 1, helper.make_node("Add", [cast.input[0], "nothing"], ["sum"])
    )
    next(node for node in model.graph.node if "classes" in node.output).input[0] = "sum"
    onnx.save(model, tmp_path / "odd.onnx")
    report = _judged(segmenter, tmp_path / "odd.onnx", tmp_path)
    assert [row.output for row in report.rows] == ["classes"]
    assert [skipped.stage for skipped in report.skipped] == [f"{STAGE}, classes.scores"]
    assert report.passed


def test_the_grid_has_both_ends() -> None:
    assert list(grid(5)) == [0, 1, 2, 3, 4]
    assert (grid(512)[0], grid(512)[-1], len(np.unique(grid(512)))) == (0, 511, 64)


def test_only_what_is_beyond_the_margin_is_tipped() -> None:
    scores = np.array([[1.0, 1.0], [0.9, 0.5]]).reshape(1, 2, 1, 2)
    true, mine = np.zeros((1, 1, 2), int), np.ones((1, 1, 2), int)
    assert tipped([mine], [true], [scores], 0.01) == 2
    assert tipped([mine], [true], [scores], 0.1) == 1
    assert tipped([true], [true], [scores], 0.0) == 0
