"""An 8-bit file is held to the loss of decisions that it states, not to float32's rounding."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.builders.subjects import Subject

from bilateral_export.decision_loss import StatedLoss, decision_loss
from bilateral_export.errors import UserError
from bilateral_export.metadata import QUANTIZATION_KEY
from bilateral_export.parity.check import check
from bilateral_export.parity.compare import Candidate, compare
from bilateral_export.parity.inputs.samples import real_samples
from bilateral_export.parity.report.document import ParityRow
from bilateral_export.quantization.quantize import Recipe, quantised, read_source, write
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.tensors import Array

STATED = StatedLoss(
    max_loss=0.005,
    loss=decision_loss(np.zeros(300), np.zeros(300)),
    runtime="onnxruntime",
)


@pytest.fixture(scope="module")
def inputs(heldout: tuple[Array, Array], tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = heldout
    path = tmp_path_factory.mktemp("inputs") / "digits.npz"
    np.savez(path, image=images[:200], labels=labels[:200])
    return path


@pytest.fixture(scope="module")
def eight_bits(
    subjects: dict[str, Subject],
    heldout: tuple[Array, Array],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    feed = {"image": heldout[0][200:264]}
    made = quantised(read_source(subjects["digits"].onnx, [feed]), Recipe())
    made.metadata_props.add(key=QUANTIZATION_KEY, value=STATED.model_dump_json())
    path = tmp_path_factory.mktemp("quantised") / "int8.onnx"
    write(made, path)
    return path


def damaged(path: Path, target: Path, name: str, change: Callable[[Array], Array]) -> Path:
    """The file with the first constant of such a name changed."""
    model = onnx.load(path)
    found = next(t for t in model.graph.initializer if re.fullmatch(name, t.name))
    found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found)), found.name))
    onnx.save(model, target)
    return target


def row_of(path: Path, subject: Subject, inputs: Path) -> ParityRow:
    samples = real_samples(subject.checkpoint.build_model().inputs(), inputs)
    candidate = Candidate(OnnxRuntimeRunner(path), "fp32", stated=STATED)
    (row,) = compare(subject.checkpoint, [candidate], samples).rows
    return row


def test_a_file_that_holds_its_loss_passes(
    subjects: dict[str, Subject], eight_bits: Path, inputs: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    path = subjects["digits"].checkpoint.path
    report = check(path, eight_bits, inputs=inputs, batches=(1, 8), html=page)
    rows = [row for row in report.rows if "int8 file" in row.stage]
    assert rows
    assert report.passed, report.failures
    for row in rows:
        assert row.error > 100 * row.eager_error  # float32's budget would fail it
        assert row.loss is not None
        assert row.loss.labelled
        assert row.loss.decisions == 200
        # More may be lost than stated, where the items are too few to tell it from chance.
        assert row.loss.low <= STATED.max_loss
        assert row.stated_loss == STATED.max_loss
    assert any("single nodes" in skipped.stage for skipped in report.skipped)
    assert report.bisections == ()
    assert report.model_validate_json(report.model_dump_json()) == report
    assert "int8 file" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        (r".*mlp.fc1.*/scale", lambda scale: 16 * scale, "its file states at most 0.50%"),
        (r".*mlp.fc1.*/scale", lambda scale: -scale, "its file states at most 0.50%"),
        ("head.bias", lambda bias: bias * np.float32("nan"), "NaN or infinity"),
    ],
)
def test_one_with_a_damaged_scale_fails(
    name: str,
    change: Callable[[Array], Array],
    why: str,
    subjects: dict[str, Subject],
    eight_bits: Path,
    inputs: Path,
    tmp_path: Path,
) -> None:
    row = row_of(
        damaged(eight_bits, tmp_path / "damaged.onnx", name, change), subjects["digits"], inputs
    )
    assert not row.passed
    assert why in row.reason


def test_without_classes_decisions_are_compared(
    subjects: dict[str, Subject], eight_bits: Path, inputs: Path, tmp_path: Path
) -> None:
    with np.load(inputs) as file:
        np.savez(tmp_path / "images.npz", image=file["image"])
    row = row_of(eight_bits, subjects["digits"], tmp_path / "images.npz")
    assert row.passed
    assert row.loss is not None
    assert not row.loss.labelled


def test_a_stated_loss_needs_real_inputs(
    subjects: dict[str, Subject], eight_bits: Path, inputs: Path, tmp_path: Path
) -> None:
    with np.load(inputs) as file:
        few = {name: array[:20] for name, array in file.items()}
    np.savez(tmp_path / "few.npz", **few)
    for given, count in ((None, "none"), (tmp_path / "few.npz", "20")):
        with pytest.raises(UserError, match=f"real inputs, and {count} are given"):
            check(subjects["digits"].checkpoint.path, eight_bits, inputs=given)


def test_as_many_classes_as_items_are_wanted(
    subjects: dict[str, Subject], inputs: Path, tmp_path: Path
) -> None:
    with np.load(inputs) as file:
        np.savez(tmp_path / "odd.npz", image=file["image"], labels=file["labels"][:7])
    specs = subjects["digits"].checkpoint.build_model().inputs()
    with pytest.raises(UserError, match="200 items and labels \\["):
        real_samples(specs, tmp_path / "odd.npz")
