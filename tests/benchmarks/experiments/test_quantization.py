"""Quantising: what is written holds the loss, and what does not hold it is not written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.builders.exported import exported

from bilateral_benchmarks.experiments import quantization
from bilateral_benchmarks.experiments.quantization import Quantization, quantize
from bilateral_export.artifact import read_onnx
from bilateral_export.errors import UserError
from bilateral_export.lowering.gate import opened
from bilateral_export.lowering.lower import lowered_proto
from bilateral_export.quantization.quantize import Recipe, quantised, read_source
from bilateral_export.runners.lowered import LoweredRunner
from bilateral_export.text import STEP_INPUTS, step_feed
from bilateral_serving import repository

HELD_OUT = Path(__file__).parents[3] / "export" / "checkpoints" / "digits_heldout.npz"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    with np.load(HELD_OUT) as held_out:
        prepared = (held_out["images"][:, None] / 255 - 0.3) / 0.35
        return {"image": prepared.astype(np.float32)}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    with np.load(HELD_OUT) as held_out:
        return held_out["labels"]


@pytest.fixture(scope="module")
def written(
    digits: Path,
    images: dict[str, np.ndarray],
    labels: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Quantization]:
    """A file in 8 bits, and what was found of it."""
    target = tmp_path_factory.mktemp("quantised") / "int8.onnx"
    return target, quantize(digits, target, images, labels, max_loss=0.005, rounds=1)


def test_a_form_that_holds_is_written(
    written: tuple[Path, Quantization],
    digits: Path,
    images: dict[str, np.ndarray],
    labels: np.ndarray,
    tmp_path: Path,
) -> None:
    target, found = written
    assert found.holds
    assert found.items == len(labels) - 64
    assert found.size == target.stat().st_size / digits.stat().st_size < 0.6
    artifact, before = read_onnx(target), read_onnx(digits)
    assert "int8" in artifact.precision
    assert artifact.attention == before.attention  # the operator stays, and floats in it
    assert len(found.sensitivities) == found.layers
    rest = {"image": images["image"][64:]}
    with LoweredRunner(digits) as plain, LoweredRunner(target) as fast:
        assert fast.lowering is not None
        assert fast.lowering.summary == plain.lowering.summary  # type: ignore[union-attr]
        decided = [runner.run(rest)["logits"].argmax(1) for runner in (plain, fast)]
    assert int((decided[0] != decided[1]).sum()) == found.candidates[-1].changed
    served = repository.add("digits", target, tmp_path / "models").versions[0]
    assert "int8" in served.precision


def test_where_none_holds_nothing_is_written(
    digits: Path,
    images: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every form is broken here: weights of the other sign."""
    real = quantization.quantised

    def broken(*arguments: object, **only: str) -> onnx.ModelProto:
        made = real(*arguments, **only)  # type: ignore[arg-type]
        for tensor in made.graph.initializer:
            if tensor.name.endswith("/int8"):
                value = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(-value, tensor.name))
        return made

    monkeypatch.setattr(quantization, "quantised", broken)
    few = {"image": images["image"][:64]}
    found = quantize(digits, tmp_path / "int8.onnx", few, max_loss=0.0, rounds=1)
    assert not found.holds
    assert not (tmp_path / "int8.onnx").exists()
    kept = [one.float_layers for one in found.candidates]
    assert kept == sorted(kept)
    assert len(kept) > 3


def test_smoothing_changes_no_answer_in_float(digits: Path, images: dict[str, np.ndarray]) -> None:
    feed = {"image": images["image"][:32]}
    source = read_source(digits, [feed])
    answers = []
    for model in (source.model, source.smoothed[0]):
        with opened(model) as session:
            answers.append(session.run(None, feed)[0])
    assert not np.array_equal(*answers)  # it did something
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-4, atol=1e-4)


def test_the_layers_named_stay_float(digits: Path, images: dict[str, np.ndarray]) -> None:
    source = read_source(digits, [{"image": images["image"][:8]}])
    keep = frozenset(layer.name for layer in source.layers[:3])
    made = quantised(source, Recipe(float_layers=keep))
    products = [node.name for node in made.graph.node if node.op_type == "MatMul"]
    assert keep <= set(products)
    integer = [node for node in made.graph.node if node.op_type == "MatMulInteger"]
    assert len(integer) == len(source.layers) - 3


IMAGES = np.zeros((16, 1, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("given", "labels", "loss", "why"),
    [
        ({"image": IMAGES[:3]}, None, 0.005, "3 of 'image'"),
        ({}, None, 0.005, "none"),
        ({"image": np.float32(1)}, None, 0.005, "0 of 'image'"),
        ({"image": IMAGES, "mask": IMAGES[:8]}, None, 0.005, "16 of 'image', 8 of 'mask'"),
        ({"image": IMAGES + np.nan}, None, 0.005, "'image' hold NaN"),
        ({"image": IMAGES}, np.zeros((16, 1), np.int64), 0.005, r"int64\[16, 1\], for 16 items"),
        ({"image": IMAGES}, np.float32(1), 0.005, r"float32\[\]"),
        ({"image": IMAGES}, np.zeros(16), 0.005, r"float64\[16\]"),
        ({"image": IMAGES}, None, 1.5, "no share of decisions"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    given: dict[str, np.ndarray],
    labels: np.ndarray | None,
    loss: float,
    why: str,
    digits: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=why):
        quantize(digits, tmp_path / "int8.onnx", given, labels, max_loss=loss)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_language_model_decides_nothing(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = exported("pydoc_bilateral", tmp_path_factory)
    words, past = np.zeros((16, 4), np.int64), np.zeros((16, 4, 4, 0, 16), np.float32)
    given = step_feed((words, words, past, past), STEP_INPUTS) | {"starts": words[:, :1]}
    with pytest.raises(UserError, match="'log_likelihood' decides nothing"):
        quantize(file, tmp_path / "int8.onnx", given)


def test_openvino_computes_the_same_file_in_integers(
    digits: Path, images: dict[str, np.ndarray], labels: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    target = tmp_path / "int8.onnx"
    found = quantize(digits, target, images, labels, runtime="openvino", max_loss=0.01, rounds=1)
    assert found.holds
    model, _ = lowered_proto(target, "openvino")
    made = {node.output[0]: node for node in model.graph.node}
    weights = [made[node.input[1]] for node in model.graph.node if node.name.endswith("/MatMul")]
    assert [node.op_type for node in weights] == ["DequantizeLinear"] * found.layers
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {kinds[node.input[0]] for node in weights} == {onnx.TensorProto.INT8}
    few = {"image": images["image"][64:128]}
    answers = []
    for path, runtime in ((digits, "openvino"), (target, "openvino"), (target, "onnxruntime")):
        with LoweredRunner(path, runtime) as runner:
            answers.append(runner.run(few)["logits"])
    plain, quantised_there, quantised_here = answers
    error = np.linalg.norm(quantised_there - plain)
    assert error > 0
    # The same integers; what is rounded differently is what float32 rounds differently before.
    assert np.linalg.norm(quantised_there - quantised_here) < error


def test_an_answer_does_not_depend_on_its_neighbours(
    written: tuple[Path, Quantization], images: dict[str, np.ndarray]
) -> None:
    with LoweredRunner(written[0]) as runner:
        together = runner.run({"image": images["image"][:8]})["logits"]
        loud = images["image"][:8].copy()
        loud[1:] *= 50
        beside = runner.run({"image": loud})["logits"]
    np.testing.assert_array_equal(beside[0], together[0])
