"""Who takes part in a comparison depends on the machine, and who does not is listed with why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.builders.exported import exported as shared

from bilateral_benchmarks.experiments import contenders
from bilateral_benchmarks.experiments.contenders import (
    Absent,
    Contender,
    checkpoint_of,
    usual_contenders,
)

CHECKPOINT = "export/checkpoints/digits_bilateral.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared("digits_bilateral", tmp_path_factory, opset=23)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_takes_part_only_where_the_cpu_has_it(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(contenders, "_has_bf16", lambda: has_bf16)
    checkpoint = checkpoint_of(CHECKPOINT, tmp_path)
    found = {one.name: one for one in usual_contenders(checkpoint, exported, tmp_path)}
    assert isinstance(found["openvino f32"], Contender)
    assert isinstance(found["onnxruntime int8"], Contender)
    assert isinstance(found["openvino int8"], Contender)
    assert isinstance(found["openvino bf16"], Contender if has_bf16 else Absent)


def test_a_plan_that_cannot_be_loaded_is_listed_with_its_reason(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("with a GPU the plan can be loaded")
    pytest.importorskip("tensorrt_rtx")
    absent = contenders.tensorrt("tensorrt", exported, tmp_path, "auto")
    assert absent == Absent("tensorrt", "no GPU")
    assert list(tmp_path.iterdir()) == []
    # As on a machine whose torch sees a GPU: the plan is built, and refused by what loads it.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    absent = contenders.tensorrt("tensorrt", exported, tmp_path, "auto")
    assert isinstance(absent, Absent)
    assert "none is visible here" in absent.reason
    assert (tmp_path / "tensorrt.plan").is_file()
