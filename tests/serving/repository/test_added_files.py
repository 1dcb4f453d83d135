"""What `add` says of files that another tool has touched, and which it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.builders import tiny_models as models
from tests.builders.exported import exported

from bilateral_export.errors import UserError
from bilateral_export.files import sha256
from bilateral_serving import repository
from bilateral_serving.client import Client
from bilateral_serving.config import Settings
from bilateral_serving.repository.provenance import read_provenance
from bilateral_serving.server import RunningServer

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"
CHECKPOINT = "digits_bilateral.safetensors"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(CHECKPOINT.partition(".")[0], tmp_path_factory)


def edited(path: Path, copy: Path, edit: object) -> Path:
    model = onnx.load(path)
    edit(model)  # type: ignore[operator]
    onnx.save(model, copy)
    return copy


def test_an_exported_file_needs_no_remark_and_its_hashes_are_kept(
    digits: Path, tmp_path: Path
) -> None:
    entry = repository.add("digits", digits, tmp_path / "r")
    assert entry.remarks == ()
    provenance = entry.versions[0].provenance
    assert provenance is not None
    served = entry.versions[0].directory / "model.onnx"
    assert provenance.source_sha256 == sha256(digits)
    assert provenance.files == {"model.onnx": sha256(served)}
    assert sha256(served) != sha256(digits)  # it was lowered
    assert entry.versions[0].precision == "fp32"


def test_the_chain_of_hashes_reaches_from_the_checkpoint_to_the_client(
    digits: Path, server: RunningServer, client: Client, tmp_path: Path
) -> None:
    version = repository.add("digits", digits, tmp_path / "r").versions[0]
    assert version.metadata is not None
    assert version.metadata.checkpoint_sha256 == sha256(CHECKPOINTS / CHECKPOINT)
    # The server of these tests has other models: what it serves is what it says it serves.
    provenance = read_provenance(client.model_config("quadrants"), 2)
    assert provenance is not None
    assert provenance.files == {"model.onnx": provenance.source_sha256}


def test_parameters_that_are_no_numbers_do_not_hide_the_other_models(tmp_path: Path) -> None:
    repository.add("quadrants", models.quadrants(tmp_path / "m.onnx"), tmp_path / "r")
    path = tmp_path / "r" / "quadrants" / "config.pbtxt"
    path.write_text(path.read_text().replace('string_value: "0"', 'string_value: "many"'))
    (entry,) = repository.list_entries(tmp_path / "r")
    assert entry.threads == 0


def test_external_data_has_its_hash_too(tmp_path: Path) -> None:
    path = models.with_external_data(tmp_path / "big.onnx")
    version = repository.add("big", path, tmp_path / "r").versions[0]
    assert version.provenance is not None
    assert version.provenance.files == {
        "model.onnx": sha256(path),
        "big.onnx.data": sha256(tmp_path / "big.onnx.data"),
    }


def without_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def without_labels(model: onnx.ModelProto) -> None:
    about = models.metadata(labels=(), family="image-classifier")
    model.metadata_props[0].value = about.model_dump_json()


def without_preprocessing(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = models.metadata(preprocessing=None).model_dump_json()


@pytest.mark.parametrize(
    ("edit", "remark"),
    [
        (without_metadata, "it has no metadata"),
        (without_labels, "it says no labels"),
        (without_preprocessing, "it says no preprocessing"),
    ],
)
def test_metadata_that_a_tool_dropped_is_missed(edit: object, remark: str, tmp_path: Path) -> None:
    path = edited(models.quadrants(tmp_path / "m.onnx"), tmp_path / "e.onnx", edit)
    (said,) = repository.add("quadrants", path, tmp_path / "r").remarks
    assert said.startswith(remark)


def to_fp16(path: Path, copy: Path) -> Path:
    """All weights as float16 that are cast back, as converters do that keep inputs and outputs."""
    model = onnx.load(path)
    for tensor in [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        cast = helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    onnx.save(model, copy)
    return copy


def test_another_precision_and_a_fixed_batch_are_said(digits: Path, tmp_path: Path) -> None:
    entry = repository.add("half", to_fp16(digits, tmp_path / "half.onnx"), tmp_path / "r")
    assert "its weights are fp16, though it was exported as fp32" in entry.remarks
    assert entry.versions[0].precision == "fp16"
    fixed = models.quadrants(tmp_path / "fixed.onnx", batch=1)
    assert repository.add("fixed", fixed, tmp_path / "r").remarks == (
        "its batch is fixed: requests are not batched",
    )


def test_an_int8_file_is_said_to_be_one(digits: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    int8 = tmp_path / "int8.onnx"
    quantize_dynamic(digits, int8, weight_type=QuantType.QInt8)
    entry = repository.add("digits", int8, tmp_path / "r")
    assert "its weights are int8, though it was exported as fp32" in entry.remarks


def test_a_file_that_onnx_runtime_cannot_open_is_refused(digits: Path, tmp_path: Path) -> None:
    def break_types(model: onnx.ModelProto) -> None:
        """As constant folding does to `value_float` in a function's body."""
        for node in model.functions[0].node:
            for attribute in node.attribute:
                if attribute.name in ("value_float", "value") and node.op_type == "Constant":
                    value = numpy_helper.from_array(np.array(1.0, np.float64))
                    attribute.CopyFrom(helper.make_attribute("value", value))

    path = edited(digits, tmp_path / "broken.onnx", break_types)
    root = tmp_path / "r"
    with pytest.raises(UserError, match=r"broken\.onnx cannot be served by python: .*inconsistent"):
        repository.add("digits", path, root, lower=False)
    assert not root.exists()


def test_a_batch_that_is_free_in_name_only_is_refused(tmp_path: Path) -> None:
    path = models.slow(tmp_path / "slow.onnx")
    with pytest.raises(UserError, match=r"a request of 2 rows: .*Loop.* --max-batch-size 1"):
        repository.add("slow", path, tmp_path / "r")
    repository.add("slow", path, tmp_path / "r", settings=Settings(max_batch_size=1))


def test_a_refused_file_leaves_the_versions_there_alone(tmp_path: Path) -> None:
    good = models.quadrants(tmp_path / "m.onnx")
    repository.add("quadrants", good, tmp_path / "r")
    config = tmp_path / "r" / "quadrants" / "config.pbtxt"
    before = config.read_text()

    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Flattened"

    with pytest.raises(UserError, match="Flattened"):
        repository.add("quadrants", edited(good, tmp_path / "bad.onnx", unknown), tmp_path / "r")
    assert config.read_text() == before
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [".lock", "quadrants"]
