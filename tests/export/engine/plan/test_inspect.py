from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.engine.plan.inspect import EntrySummary, OnnxSummary, PlanSummary, inspect
from bilateral_export.errors import UserError
from bilateral_export.op.contract import OperatorVariant

GAUSSIAN = OperatorVariant("gaussian", "gaussian")
CONFIG = """
backend: "tensorrt" max_batch_size: 8
input { name: "x" data_type: TYPE_FP16 dims: [16, 64] }
output { name: "y_0" data_type: TYPE_FP16 dims: [16, 64] }
"""


def test_an_onnx_file_shows_its_nodes_and_its_attention(make_model) -> None:
    summary = inspect(make_model(GAUSSIAN, GAUSSIAN, precision="fp16"))
    assert isinstance(summary, OnnxSummary)
    assert summary.nodes["ai.bilateral::BilateralAttention"] == 2
    assert summary.nodes["MatMul"] == 6
    assert summary.opsets == {"ai.onnx": 20, "ai.bilateral": 1}
    assert summary.inputs[0].sizes == (-1, 16, 64)
    assert summary.weights["float16"] == 6 * 64 * 64
    ((attention, count),) = summary.attention.items()
    assert count == 2
    assert "spatial_kernel=gaussian" in attention
    assert "function body only" not in attention


def test_nodes_that_cannot_take_the_plugin_are_pointed_out(make_model) -> None:
    summary = inspect(make_model(GAUSSIAN, plugin_attributes=False))
    assert isinstance(summary, OnnxSummary)
    assert "function body only" in next(iter(summary.attention))


@pytest.fixture
def plan(make_model) -> Path:
    pytest.importorskip("tensorrt_rtx")
    model = make_model(GAUSSIAN, precision="fp16")
    path = model.with_suffix(".plan")
    options = BuildOptions(targets=(86,), attention="function")
    build_plan(model, path, options, library=load_library("tensorrt_rtx"))
    return path


def test_a_plan_shows_its_kernels_and_its_manifest(plan: Path) -> None:
    summary = inspect(plan)
    assert isinstance(summary, PlanSummary)
    assert summary.kernels is not None
    assert any("mha" in name for name in summary.kernels)
    assert summary.manifest is not None
    assert summary.manifest.attention.fused == 1
    assert summary.problem == ""


def test_a_plan_is_told_by_its_content_and_shown_without_manifest(plan: Path) -> None:
    renamed = plan.with_name("weights.bin")
    plan.rename(renamed)
    summary = inspect(renamed)
    assert isinstance(summary, PlanSummary)
    assert summary.manifest is None
    assert summary.problem == "it has no manifest"
    assert summary.header is not None
    assert summary.header.library == "tensorrt_rtx"


def test_a_repository_entry_shows_its_versions(plan: Path, tmp_path: Path) -> None:
    entry = tmp_path / "repository" / "small"
    for version in ("2", "10"):
        (entry / version).mkdir(parents=True)
        for file in (plan, plan.with_name(plan.name + ".json")):
            (entry / version / file.name).write_bytes(file.read_bytes())
    (entry / "config.pbtxt").write_text(CONFIG)
    summary = inspect(entry)
    assert isinstance(summary, EntrySummary)
    assert (summary.backend, summary.max_batch_size) == ("tensorrt", 8)
    assert summary.inputs[0].dtype == "fp16"
    assert list(summary.versions) == ["2", "10"]
    assert all(isinstance(files[0], PlanSummary) for files in summary.versions.values())


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("notes")
    for path in (text, tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError):
            inspect(path)
    (tmp_path / "config.pbtxt").write_text("backend: {")
    with pytest.raises(UserError, match=r"config\.pbtxt"):
        inspect(tmp_path)


def test_what_a_file_says_wrongly_of_itself_does_not_keep_it_from_being_shown(make_model) -> None:
    path = make_model(GAUSSIAN)
    model = onnx.load(path)
    model.graph.initializer[0].data_type = 77
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UNDEFINED
    model.metadata_props.add(key="bilateral", value="{broken")
    onnx.save(model, path)
    summary = inspect(path)
    assert isinstance(summary, OnnxSummary)
    assert "type 77" in summary.weights
    assert summary.inputs[0].dtype == "type 0"
    assert summary.metadata is None
