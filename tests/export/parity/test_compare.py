"""Parity passes what rounds differently and fails what computes something else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.builders.exported import exported
from tests.builders.graph_faults import SERVING_FAULTS, Spoiled
from tests.builders.subjects import Subject
from tests.export.parity.conftest import FAMILIES

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.metadata import Precision
from bilateral_export.models.registry import build, named
from bilateral_export.parity.bisection.widen import widen_file
from bilateral_export.parity.compare import (
    Candidate,
    Truth,
    compare,
    judge,
    outputs_of,
    truth_of,
)
from bilateral_export.parity.inputs.samples import Sample, random_samples
from bilateral_export.parity.reference import ReferenceSpec
from bilateral_export.parity.report.document import ParityRow
from bilateral_export.parity.scores import expose_scores, with_scores
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.tensors import Array

SEEDS = range(20)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="module")
def files(
    subjects: dict[str, Subject], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, Precision], Path]:
    """Every family in every precision."""
    made: dict[tuple[str, Precision], Path] = {}
    for family, (name, _) in FAMILIES.items():
        made[family, "fp32"] = subjects[family].onnx
        for precision in PRECISIONS[1:]:
            made[family, precision] = exported(name, tmp_path_factory, precision=precision)
    return made


def _native(path: Path, precision: Precision) -> Candidate:
    if precision == "bf16":  # ONNX Runtime's CPU provider has no bfloat16 kernels
        pytest.importorskip("openvino")
        return Candidate(OpenVinoRunner(path, threads=1), precision)
    return Candidate(OnnxRuntimeRunner(path, threads=1), precision)


def _failed_seeds(
    checkpoint: Checkpoint, candidate: Candidate, lengths: dict[str, tuple[int, ...]]
) -> list[tuple[int, ParityRow]]:
    """Rows that fail, by seed. Each seed is judged alone; all are run in one go."""
    model = checkpoint.build_model()
    samples = [
        sample for seed in SEEDS for sample in random_samples(model, (1, 2, 29), lengths, seed=seed)
    ]
    per_seed = len(samples) // len(SEEDS)
    truth = truth_of(checkpoint, candidate.reference_spec, samples)
    with candidate.runner as runner:
        outputs = outputs_of(runner, samples)
    failed = []
    for seed in SEEDS:
        cut = slice(seed * per_seed, (seed + 1) * per_seed)
        rows = judge(
            candidate,
            {name: pieces[cut] for name, pieces in outputs.items()},
            Truth(
                {name: pieces[cut] for name, pieces in truth.reference.items()},
                {name: pieces[cut] for name, pieces in truth.eager.items()},
            ),
            samples[cut],
        )
        failed += [(seed, row) for row in rows if not row.passed]
    return failed


@pytest.mark.parametrize("family", ["digits", "sequence", "language"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("widened", [False, True])
def test_a_healthy_model_passes_twenty_seeds(
    checkpoints: dict[str, Checkpoint],
    subjects: dict[str, Subject],
    files: dict[tuple[str, Precision], Path],
    tmp_path: Path,
    family: str,
    precision: Precision,
    widened: bool,
) -> None:
    if widened and precision == "fp32":
        pytest.skip("an fp32 graph is as wide as it gets")
    checkpoint, path = checkpoints[family], files[family, precision]
    if widened:
        widen_file(path, tmp_path / "wide.onnx")
        runner = OnnxRuntimeRunner(tmp_path / "wide.onnx", threads=1)
        candidate = Candidate(runner, precision, widened=True)
    else:
        candidate = _native(path, precision)
    assert _failed_seeds(checkpoint, candidate, subjects[family].lengths) == []


@pytest.mark.parametrize(
    "precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow), "bf16"]
)
def test_a_healthy_segmenter_passes_twenty_seeds(tmp_path: Path, precision: Precision) -> None:
    """By its labels, and by the scores behind them."""
    config = named("segmenter_tiny").model_copy(
        update={"image_size": 32, "patch_size": 8, "dim": 48, "depth": 2, "num_classes": 5}
    )
    torch.manual_seed(0)
    model = build(config)
    card = CheckpointCard(name="segmenter", model=config)
    checkpoint = Checkpoint(tmp_path, "0" * 64, card, model.state_dict())
    made = export_onnx(checkpoint, tmp_path / "segmenter.onnx", precision=precision)
    scored = with_scores(checkpoint)
    shown = expose_scores(made.path, scored, tmp_path / "scores.onnx")
    assert _failed_seeds(scored, _native(shown, precision), {}) == []


@pytest.mark.parametrize("name", SERVING_FAULTS)
def test_each_fault_around_the_graph_fails(colours: Checkpoint, name: str) -> None:
    samples = random_samples(colours.build_model())
    runner = Spoiled(TorchRunner(colours), **SERVING_FAULTS[name])
    assert not compare(colours, [Candidate(runner, "fp32")], samples).passed


def test_the_model_that_those_faults_spoil_passes(colours: Checkpoint) -> None:
    samples = random_samples(colours.build_model())
    runner = Spoiled(TorchRunner(colours))
    assert compare(colours, [Candidate(runner, "fp32")], samples).passed


def test_a_file_of_other_weights_fails(
    subjects: dict[str, Subject], checkpoints: dict[str, Checkpoint]
) -> None:
    subject = subjects["digits"]
    stale = {name: tensor * 0.999 for name, tensor in subject.checkpoint.state.items()}
    runner = TorchRunner(
        Checkpoint(subject.checkpoint.path, "0" * 64, subject.checkpoint.card, stale)
    )
    report = compare(subject.checkpoint, [Candidate(runner, "fp32")], subject.samples)
    assert not report.passed


def test_half_precision_weights_fail_an_fp32_budget(subjects: dict[str, Subject]) -> None:
    subject = subjects["digits"]
    runner = TorchRunner(subject.checkpoint, torch.float16)
    samples = subject.samples
    assert not compare(subject.checkpoint, [Candidate(runner, "fp32")], samples).passed
    assert compare(subject.checkpoint, [Candidate(runner, "fp16")], samples).passed


def test_widening_shows_what_half_precision_hides(
    files: dict[tuple[str, Precision], Path], subjects: dict[str, Subject], tmp_path: Path
) -> None:
    """A layer norm's epsilon ten times too large is below fp16's rounding, and above fp32's."""
    import onnx
    from tests.builders.graph_faults import set_attribute

    subject = subjects["digits"]
    model = onnx.load(files["digits", "fp16"])
    node = "blocks.0.norm1/LayerNormalization"
    set_attribute(node, "epsilon", 1e-5)(model)
    onnx.save(model, tmp_path / "half.onnx")
    widen_file(tmp_path / "half.onnx", tmp_path / "wide.onnx")
    half = Candidate(OnnxRuntimeRunner(tmp_path / "half.onnx", threads=1), "fp16")
    wide = Candidate(OnnxRuntimeRunner(tmp_path / "wide.onnx", threads=1), "fp16", widened=True)
    assert compare(subject.checkpoint, [half], subject.samples).passed
    assert not compare(subject.checkpoint, [wide], subject.samples).passed


def test_a_row_says_where_and_how_large_the_error_is(
    subjects: dict[str, Subject], heldout: tuple[Array, Array]
) -> None:
    subject = subjects["digits"]
    samples = [*subject.samples, Sample("held out", {"image": heldout[0][:24]})]

    def spoil(answer: dict[str, Array]) -> dict[str, Array]:
        logits = answer["logits"].copy()
        if len(logits) == 24:
            logits[5] *= np.float32(1.5)
        return {"logits": logits}

    runner = Spoiled(TorchRunner(subject.checkpoint), after=spoil)
    (row,) = compare(subject.checkpoint, [Candidate(runner, "fp32")], samples).rows
    assert (row.worst.sample, row.worst.item) == ("held out", 5)
    assert row.error == row.worst.error == pytest.approx(0.5, rel=1e-3)
    assert not row.passed
    assert 4 * row.eager_error <= row.budget <= 8 * row.eager_error
    assert sum(row.ulp_histogram) == 10 * row.items
    assert row.decision is not None
    assert row.decision.agreement == 1


def test_a_reference_rounds_weights_before_it_widens_them(subjects: dict[str, Subject]) -> None:
    subject = subjects["digits"]
    arrays = subject.samples[0].arrays
    with ReferenceSpec("bf16", "fp32").reference(subject.checkpoint) as rounded:
        coarse = rounded.run(arrays)["logits"]
    exact = subject.truth.reference["logits"][0]
    assert 1e-4 < np.linalg.norm(coarse - exact) / np.linalg.norm(exact) < 0.1


def _scattered(subject: Subject, items: int) -> ParityRow:
    """A row of answers whose errors are a fifth of eager PyTorch's here and twice it there."""
    reference = np.ones((items, 16))
    ratios = np.resize([0.2, 2.0, 0.3, 1.9], items)[:, None]
    truth = Truth({"y": [reference]}, {"y": [reference * (1 + 1e-6)]})
    candidate = Candidate(TorchRunner(subject.checkpoint), "fp32", stage="scattered")
    samples = [Sample("all", {"x": reference})]
    (row,) = judge(candidate, {"y": [reference * (1 + 1e-6 * ratios)]}, truth, samples)
    return row


def test_too_few_items_are_named_as_the_reason(subjects: dict[str, Subject]) -> None:
    """An error below its budget fails where its typical ratio is not certain; more items tell."""
    row = _scattered(subjects["digits"], 4)
    assert not row.passed
    assert row.error < row.budget
    said = re.search(r"too few items to tell, give --items (\d+)", row.reason)
    assert said is not None
    enough = _scattered(subjects["digits"], int(said[1]))
    assert enough.passed
    assert enough.reason == ""


def test_a_row_says_why_it_fails(subjects: dict[str, Subject]) -> None:
    subject = subjects["digits"]
    runner = TorchRunner(subject.checkpoint, torch.float16)
    (row,) = compare(subject.checkpoint, [Candidate(runner, "fp32")], subject.samples).rows
    assert "largest error" in row.reason
    assert "typical error" in row.reason
    assert "--items" not in row.reason
