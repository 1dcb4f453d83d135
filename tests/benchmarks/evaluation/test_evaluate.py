"""Models on the same labelled files: right ones agree, and each kind of mistake is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tests.builders import labelled
from tests.builders.exported import CHECKPOINTS, exported
from tests.serving.server.live_processes import free_ports

from bilateral_benchmarks.evaluation import evaluate
from bilateral_benchmarks.evaluation.subjects import OnnxSubject
from bilateral_export.errors import UserError
from bilateral_export.tensors import Array
from bilateral_serving import repository
from bilateral_serving.server import ServerOptions, running

DIGITS = CHECKPOINTS / "digits_bilateral.safetensors"
ORDER = ["0", "1", "7", "3", "4", "5", "6", "2", "8", "9"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled.heldout_digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)


class Counted(OnnxSubject):
    """Counts the items that it is asked about."""

    asked = 0

    def logits(self, items: Sequence[Sequence[bytes]]) -> list[Array | UserError]:
        self.asked += len(items)
        return super().logits(items)


def test_checkpoint_file_and_served_model_give_the_same_answers(
    digits: Path, digits_onnx: Path, tmp_path: Path
) -> None:
    repository.add("digits", digits_onnx, tmp_path / "models")
    options = ServerOptions(
        tmp_path / "models", grpc_port=free_ports(1)[0], http_port=None, metrics_port=None
    )
    with running(options) as server:
        subjects = [str(DIGITS), str(digits_onnx), "digits"]
        found = evaluate(subjects, digits, url=server.url, max_drop=0.0)
    assert found.passed
    assert (found.items, found.metric) == (360, "top1")
    assert [score.kind for score in found.scores] == ["torch", "onnx", "served"]
    for score in found.scores:
        assert score.metrics == found.scores[0].metrics
        assert score.metrics["top1"] > 0.95
        assert score.metrics["top5"] >= score.metrics["top1"]
        assert (score.unread, score.findings) == ((), ())
    assert len(found.pairs) == 3
    for pair in found.pairs:
        assert (pair.changed, pair.differences, pair.drop, pair.p_value) == ((), (), 0.0, 1.0)


@pytest.mark.parametrize(
    ("mistake", "difference", "at_least"),
    [
        ({"labels": ORDER}, "labels in another order: '2' and '7', '7' and '2'", 0.1),
        ({"resize": 11}, "resize: 8 and 11", 0.1),
        ({"mean": [0.9]}, r"mean: (0.3,) and (0.9,)", 0.1),
        ({"interpolation": "bilinear"}, "interpolation: bicubic and bilinear", 0.02),
    ],
    ids=["labels", "resize", "mean", "interpolation"],
)
def test_a_mistake_that_logits_cannot_show_is_found(
    digits: Path, digits_onnx: Path, tmp_path: Path, mistake: Any, difference: str, at_least: float
) -> None:
    wrong = labelled.mistaken(digits_onnx, tmp_path / "wrong.onnx", **mistake)
    found = evaluate([str(digits_onnx), str(wrong)], digits, max_drop=0.02)
    (pair,) = found.pairs
    assert pair.differences == (difference,)
    assert pair.changed, "answers differ"
    first, second = (score.metrics["top1"] for score in found.scores)
    assert pair.drop == pytest.approx(first - second)
    assert pair.first_only is not None
    assert pair.second_only is not None
    assert pair.drop == pytest.approx((pair.first_only - pair.second_only) / 360)
    assert pair.interval is not None
    assert pair.interval[0] < pair.drop < pair.interval[1]
    assert not found.passed
    assert pair.drop > at_least
    assert pair.p_value is not None
    assert pair.p_value < 0.01
    if "labels" in mistake:
        (finding,) = found.scores[1].findings
        assert "'7' as '2', '2' as '7'" in finding
        assert {change.truth for change in pair.changed} >= {"2", "7"}


def test_blue_for_red_is_found(tmp_path: Path) -> None:
    data = labelled.coloured_pictures(tmp_path / "data")
    right = labelled.colours(tmp_path / "rgb.onnx")
    wrong = labelled.colours(tmp_path / "bgr.onnx", "BGR")
    found = evaluate([str(right), str(wrong)], data, max_drop=0.1)
    assert [score.metrics["top1"] for score in found.scores] == [1.0, pytest.approx(1 / 3)]
    assert not found.passed
    (pair,) = found.pairs
    assert {(change.truth, change.second) for change in pair.changed} == {
        ("red", "blue"),
        ("blue", "red"),
    }
    # Exchanged names look the same: only a person knows which of the two it is.
    assert "'red' as 'blue', 'blue' as 'red'" in found.scores[1].findings[0]


def test_an_interrupted_evaluation_goes_on(digits_onnx: Path, tmp_path: Path) -> None:
    data = labelled.heldout_digits(tmp_path / "data", 40)
    record = tmp_path / "answers.jsonl"

    def interrupt(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    first = Counted(digits_onnx)
    with pytest.raises(KeyboardInterrupt):
        evaluate([first], data, batch=10, record=record, on_progress=interrupt)
    assert first.asked == 20
    lines = record.read_bytes().splitlines(keepends=True)
    assert len(lines) == 20
    # The last line was cut off by a kill, and one file has changed since.
    record.write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    image = data / json.loads(lines[0])["item"]
    pixels = 255 - np.asarray(Image.open(image))
    Image.fromarray(pixels).save(image)

    second = Counted(digits_onnx)
    found = evaluate([second], data, batch=10, record=record)
    assert second.asked == 22
    assert found == evaluate([str(digits_onnx)], data)
    assert len(record.read_text().splitlines()) == 41

    third = Counted(digits_onnx)
    other = labelled.mistaken(digits_onnx, tmp_path / "other.onnx", interpolation="bilinear")
    fourth = Counted(other)
    assert len(evaluate([third, fourth], data, record=record).scores) == 2
    assert (third.asked, fourth.asked) == (0, 40)


def test_what_is_no_record_is_not_written_to(digits_onnx: Path, tmp_path: Path) -> None:
    data = labelled.heldout_digits(tmp_path / "data", 3)
    for content in ("my notes", "my notes\n", '{"item": 1}\n'):
        record = tmp_path / "notes.txt"
        record.write_text(content)
        with pytest.raises(UserError, match=r"answers? of `bilateral evaluate`"):
            evaluate([str(digits_onnx)], data, record=record)
        assert record.read_text() == content


def test_a_file_that_cannot_be_read_counts_as_wrong_and_is_tried_again(
    digits_onnx: Path, tmp_path: Path
) -> None:
    data = labelled.heldout_digits(tmp_path / "data", 10)
    broken = sorted(data.rglob("*.png"))[3]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    record = tmp_path / "answers.jsonl"
    found = evaluate([str(digits_onnx), str(DIGITS)], data, record=record)
    for score in found.scores:
        assert score.metrics["top1"] == pytest.approx(0.9)
        (unread,) = score.unread
        assert unread.item == broken.relative_to(data).as_posix()
        assert "damaged" in unread.reason
    assert found.pairs[0].changed == ()
    broken.write_bytes(whole)
    found = evaluate([str(digits_onnx)], data, record=record)
    assert found.scores[0].unread == ()


def test_expressions_in_a_table_by_the_checkpoint_and_its_file(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = exported("listops_bilateral", tmp_path_factory)
    checkpoint = CHECKPOINTS / "listops_bilateral.safetensors"
    found = evaluate([str(checkpoint), str(file)], CHECKPOINTS / "listops_heldout.tsv", batch=20)
    assert (found.metric, found.items) == ("accuracy", 64)
    assert found.pairs[0].changed == ()
    assert list(found.scores[0].metrics) == ["accuracy"]
    assert found.scores[0].metrics["accuracy"] == pytest.approx(28 / 64)


def test_perplexity_of_texts_is_that_of_the_documented_command(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = (CHECKPOINTS / "pydoc_heldout.txt").read_text()
    file = exported("pydoc_bilateral", tmp_path_factory)
    found = evaluate([str(file)], CHECKPOINTS / "pydoc_heldout.txt")
    # models/LANGUAGE.md
    assert found.scores[0].metrics["perplexity"] == pytest.approx(42.5, abs=0.05)
    assert found.scores[0].interval is None
    for number, line in enumerate(text.splitlines()[:6]):
        (tmp_path / f"{number}.txt").write_text(line)
    checkpoint = CHECKPOINTS / "pydoc_bilateral.safetensors"
    found = evaluate([str(checkpoint), str(file)], tmp_path, max_drop=1e-4)
    assert (found.metric, found.passed, found.pairs[0].changed) == ("perplexity", True, ())
    interval = found.scores[0].interval
    assert interval is not None
    assert interval[0] < found.scores[0].metrics["perplexity"] < interval[1]

    model = onnx.load(file)
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2:
            changed = numpy_helper.to_array(weight) * np.float32(1.1)
            weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    worse = tmp_path / "worse.onnx"
    onnx.save(model, worse)
    found = evaluate([str(file), str(worse)], tmp_path, max_drop=1e-4)
    (pair,) = found.pairs
    first, second = (score.metrics["perplexity"] for score in found.scores)
    assert pair.drop == pytest.approx(second / first - 1)
    assert pair.interval is not None
    assert pair.interval[0] <= pair.drop <= pair.interval[1]
    assert (found.passed, len(pair.changed)) == (False, 6)


def pixels(*rows: str) -> np.ndarray:
    """A picture of letters r, g, b."""
    table = np.eye(3, dtype=np.uint8) * 200
    return np.array([[table["rgb".index(letter)] for letter in row] for row in rows])


def test_mean_iou_of_a_segmenter_is_what_is_counted_by_hand(tmp_path: Path) -> None:
    data, side = tmp_path / "data", 10
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
    picture = pixels(*(["r" * side] * 5 + ["g" * side] * 5))
    Image.fromarray(picture).save(data / "images" / "a.png")
    mask = np.zeros((side, side), np.uint8)
    mask[4:] = 1  # one row of red is green in the mask
    mask[0] = 255
    Image.fromarray(mask).save(data / "masks" / "a.png")
    model = labelled.brightest_channel(tmp_path / "segmenter.onnx")
    found = evaluate([str(model)], data)
    # Red: 30 of 40 pixels in either; green: 50 of 60; 90 pixels count.
    expected = {"miou": (30 / 40 + 50 / 60) / 2, "pixel_accuracy": 80 / 90}
    assert found.scores[0].metrics == pytest.approx(expected)

    # The masks' names tell which number is which class: one that calls red green is worse.
    (data / "labels.txt").write_text("red\ngreen\nblue\n")
    wrong = labelled.brightest_channel(tmp_path / "wrong.onnx", labels=("green", "red", "blue"))
    shutil.copy(data / "images" / "a.png", data / "images" / "b.png")
    shutil.copy(data / "masks" / "a.png", data / "masks" / "b.png")
    found = evaluate([str(model), str(wrong)], data, max_drop=0.05)
    assert found.scores[0].metrics == pytest.approx(expected)
    assert not found.passed
    assert found.pairs[0].differences[0].startswith("labels in another order")
    zero = np.where(mask == 255, 0, mask + 1)
    for name in "ab":
        Image.fromarray(zero.astype(np.uint8)).save(data / "masks" / f"{name}.png")
    found = evaluate([str(model)], data, ignore_zero=True)
    assert found.scores[0].metrics == pytest.approx(expected)
    Image.fromarray(np.full_like(mask, 7)).save(data / "masks" / "a.png")
    with pytest.raises(UserError, match="has class 7, and there are 3"):
        evaluate([str(model)], data)


def test_calls_that_make_no_sense_are_refused(digits_onnx: Path, tmp_path: Path) -> None:
    data = labelled.heldout_digits(tmp_path / "data", 3)
    listops = str(CHECKPOINTS / "listops_bilateral.safetensors")
    one = str(digits_onnx)
    for subjects, options, message in [
        ([one], {"max_drop": 0.1}, "at least two models"),
        ([one, one], {"max_drop": -0.1}, "not negative"),
        ([one, listops], {}, "take different inputs"),
        (["none.safetensors"], {}, "does not exist"),
        (["served"], {"url": "127.0.0.1:1"}, "127.0.0.1:1"),
        ([one], {"batch": 0}, "batch 0"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate(subjects, data, **options)  # type: ignore[arg-type]
    next(data.iterdir()).rename(data / "zero")
    with pytest.raises(UserError, match="no class for 1 of the 3 names in the data: zero"):
        evaluate([one], data)
