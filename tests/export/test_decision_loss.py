"""A loss of decisions: its estimate, and what a file says of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bilateral_export.decision_loss import StatedLoss, decision_loss, read_stated_loss
from bilateral_export.errors import UserError
from bilateral_export.intervals import difference_interval, wilson_interval
from bilateral_export.metadata import QUANTIZATION_KEY

WANTED = np.array([0, 1, 2, 3] * 25)


def test_without_classes_what_differs_is_lost() -> None:
    got = WANTED.copy()
    got[:3] = 9
    found = decision_loss(WANTED, got)
    assert (found.share, found.changed, found.decisions) == (0.03, 3, 100)
    assert (found.low, found.high) == wilson_interval(3, 100)
    assert not found.labelled


def test_with_classes_what_is_won_counts_against_what_is_lost() -> None:
    labels, got = WANTED.copy(), WANTED.copy()
    labels[0] = got[0] = 9  # wrong before, right now
    got[1:4] = 9
    found = decision_loss(WANTED, got, labels)
    assert found.share == pytest.approx(0.02)
    assert found.changed == 4
    assert (found.low, found.high) == difference_interval(1, 3, 100)
    assert decision_loss(got, WANTED, labels).share == pytest.approx(-0.02)


def file_saying(text: str | None, path: Path) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    model = helper.make_model(graph)
    if text is not None:
        model.metadata_props.add(key=QUANTIZATION_KEY, value=text)
    onnx.save(model, path)
    return path


def test_a_file_says_its_loss_none_or_nonsense(tmp_path: Path) -> None:
    loss = decision_loss(WANTED, WANTED)
    stated = StatedLoss(max_loss=0.005, loss=loss, runtime="openvino")
    path = tmp_path / "m.onnx"
    assert read_stated_loss(file_saying(stated.model_dump_json(), path)) == stated
    assert read_stated_loss(file_saying(None, path)) is None
    with pytest.raises(UserError, match="is not valid"):
        read_stated_loss(file_saying('{"max_loss": "little"}', path))
