"""The one reader of ONNX files, and the one description of a tensor."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from tests.builders.plans import write_plan

from bilateral_export.artifact import load_graph, read_metadata, read_onnx
from bilateral_export.engine.plan.manifest import manifest_path, read_manifest
from bilateral_export.errors import UserError
from bilateral_export.lowering.lower import lower
from bilateral_export.tensors import TensorSpec


def test_an_exported_file_says_what_it_is(digits_onnx: Path) -> None:
    artifact = read_onnx(digits_onnx)
    assert artifact.inputs == (TensorSpec("image", "float32", ("batch", 1, 8, 8)),)
    assert [spec.name for spec in artifact.outputs] == ["logits"]
    assert (artifact.opset, artifact.precision, artifact.attention_nodes) == (21, "fp32", 4)
    assert artifact.lowering is None
    assert artifact.metadata == read_metadata(digits_onnx)
    assert artifact.bytes == digits_onnx.stat().st_size


def test_a_lowered_file_says_for_what(digits_onnx: Path, tmp_path: Path) -> None:
    lowered = read_onnx(lower(digits_onnx, "openvino", tmp_path / "lowered.onnx").path)
    assert lowered.lowering is not None
    assert lowered.lowering["runtime"] == "openvino"
    assert lowered.attention_nodes == 0


def test_weights_outside_are_read_only_when_asked_for(digits_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    onnx.save(onnx.load(digits_onnx), path, save_as_external_data=True, location="weights")
    artifact = read_onnx(path)
    assert artifact.external_files == (tmp_path / "weights",)
    assert artifact.bytes == path.stat().st_size + (tmp_path / "weights").stat().st_size
    whole, bare = load_graph(path), load_graph(path, weights=False)
    assert whole.ByteSize() > bare.ByteSize() + (tmp_path / "weights").stat().st_size // 2
    (tmp_path / "weights").unlink()
    assert load_graph(path, weights=False) == bare
    for read in (read_onnx, load_graph):
        with pytest.raises(UserError, match=r"the weights file of outside\.onnx"):
            read(path)


@pytest.mark.parametrize("content", [b"text", b"\x08\x07", b"PK\x03\x04zip"])
def test_another_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"other\.onnx is not an ONNX model"):
        load_graph(tmp_path / "other.onnx")


def test_dynamic_sizes_have_names_in_memory_and_are_minus_one_in_manifests(tmp_path: Path) -> None:
    spec = TensorSpec("past", "float32", (-1, 4, -1))
    assert spec.shape == ("batch", 4, "past.2")
    assert spec.sizes == (-1, 4, -1)
    plan = write_plan(tmp_path / "model.plan")
    written = json.loads(manifest_path(plan).read_text())["inputs"]
    assert written == [{"name": "image", "dtype": "float32", "shape": [-1, 3, 8, 8]}]
    manifest = read_manifest(plan)
    assert manifest.inputs == (TensorSpec("image", "float32", ("batch", 3, 8, 8)),)
