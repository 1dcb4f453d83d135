"""The exported file: one node per attention, its body inside, and nothing that was not promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from tests.builders.exported import exported, shallow

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph import export as module
from bilateral_export.graph.export import export_onnx
from bilateral_export.graph.postconditions import (
    PostconditionError,
    check_exported,
    violations,
)
from bilateral_export.metadata import METADATA_KEY, ArtifactMetadata, Precision
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.op import contract
from bilateral_export.tensors import Array

SMALL = ImageClassifierConfig(image_size=16, patch_size=4, dim=32, depth=2, heads=2, num_classes=5)


def fresh_checkpoint(config: ImageClassifierConfig) -> Checkpoint:
    torch.manual_seed(0)
    state = build(config).state_dict()
    card = CheckpointCard(name="small", model=config)
    return Checkpoint(Path("small.safetensors"), "0" * 64, card, state)


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == contract.DOMAIN]


def test_each_block_has_one_attention_node_that_says_everything(digits_onnx: Path) -> None:
    nodes = attention_nodes(onnx.load(digits_onnx))
    assert [node.name for node in nodes] == [
        f"blocks.{number}.attn/BilateralAttention" for number in range(4)
    ]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert attributes == {
        "scale": 0.25,
        "range_kernel": b"gaussian",
        "spatial_kernel": b"gaussian",
        "query_prefix": 1,
        "key_prefix": 1,
        "causal": 0,
        "plugin_namespace": b"ai.bilateral",
        "plugin_version": b"1",
    }
    assert list(nodes[2].input[3:]) == ["positions", "positions", "blocks.2.attn.bandwidth"]


def test_the_body_is_in_the_file_and_imports_the_models_opset(digits_onnx: Path) -> None:
    model = onnx.load(digits_onnx)
    (function,) = model.functions
    assert (function.domain, function.name) == (contract.DOMAIN, contract.OP_TYPE)
    standard = {o.domain: o.version for o in model.opset_import}[""]
    assert [(o.domain, o.version) for o in function.opset_import] == [("", standard)]


def test_a_learned_factor_that_is_almost_one_is_kept(tmp_path: Path) -> None:
    """PyTorch's exporter, left to optimise, takes what is within 1e-5 of 1 for 1."""
    checkpoint = fresh_checkpoint(
        SMALL.model_copy(update={"residual": ResidualConfig(preset="standard", learned=True)})
    )
    name = "blocks.0.residual1.coefficients"
    checkpoint.state[name][:2] = torch.tensor([0.999992, 1.000008])
    model = onnx.load(export_onnx(checkpoint, tmp_path / "small.onnx").path)
    factors = [
        onnx.numpy_helper.to_array(initializer).item()
        for node in model.graph.node
        if node.op_type == "Mul" and node.name.startswith("blocks.0.residual1/")
        for initializer in model.graph.initializer
        if initializer.name in node.input
    ]
    assert np.float32([0.999992, 1.000008]).tolist() == sorted(factors)[-3:][::2]


def test_nodes_say_which_module_and_line_they_come_from(digits_onnx: Path) -> None:
    model = onnx.load(digits_onnx)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "blocks.3.mlp.fc1/MatMul" in names
    properties = {
        node.name: {entry.key: entry.value for entry in node.metadata_props}
        for node in model.graph.node
    }
    attention = properties["blocks.1.attn/BilateralAttention"]
    assert attention["bilateral.module"] == "blocks.1.attn"
    assert attention["bilateral.source"].startswith("bilateral_export/models/attention.py:")
    assert str(Path(__file__).parents[3]) not in str(model.graph.node), "an absolute path leaked"


def test_metadata_says_what_a_server_and_a_client_need(
    digits: Checkpoint, digits_onnx: Path
) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(digits_onnx).metadata_props}
    metadata = ArtifactMetadata.model_validate_json(properties[METADATA_KEY])
    assert metadata.labels == tuple("0123456789")
    assert metadata.preprocessing == digits.card.preprocessing
    assert metadata.checkpoint_sha256 == digits.sha256
    assert metadata.license == "CC-BY-4.0"
    assert metadata.precision == "fp32"
    assert {"torch", "onnx", "bilateral-serve"} <= metadata.versions.keys()


def test_plain_onnx_runtime_runs_the_file_with_nothing_of_ours(
    digits_onnx: Path, heldout: tuple[Array, Array], tmp_path: Path
) -> None:
    images, labels = heldout
    np.savez(tmp_path / "inputs.npz", images=images, labels=labels)
    script = """
import sys, numpy, onnxruntime
data = numpy.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
logits = session.run(None, {"image": data["images"]})[0]
assert not any(name.startswith(("bilateral", "torch", "onnx.")) for name in sys.modules)
print((logits.argmax(-1) == data["labels"]).mean())
"""
    command = [sys.executable, "-c", script, str(digits_onnx), str(tmp_path / "inputs.npz")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert float(result.stdout) >= 0.97


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_dynamic(digits_onnx: Path, batch: int) -> None:
    session = onnxruntime.InferenceSession(digits_onnx)
    image = np.zeros((batch, 1, 8, 8), np.float32)
    assert session.run(None, {"image": image})[0].shape == (batch, 10)


@pytest.mark.parametrize(("precision", "weight_type"), [
    ("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16),
])  # fmt: skip
def test_precision_is_in_the_graph_with_float32_islands(
    tmp_path_factory: pytest.TempPathFactory, precision: Precision, weight_type: int
) -> None:
    half = exported("digits_bilateral", tmp_path_factory, precision=precision)
    model = onnx.shape_inference.infer_shapes(onnx.load(half))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["blocks.0.attn.qkv.weight_transposed"] == weight_type
    assert types["positions"] == TensorProto.FLOAT
    assert types["blocks.0.attn.bandwidth"] == TensorProto.FLOAT
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    layer_norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    stash = [a.i for node in layer_norms for a in node.attribute if a.name == "stash_type"]
    assert all(kind == TensorProto.FLOAT for kind in stash), "statistics are not float32"
    softmax = next(n for n in model.functions[0].node if n.op_type == "Softmax")
    producers = {o: n for n in model.functions[0].node for o in n.output}
    assert softmax.input[0].startswith("logits")
    assert producers["product_f"].op_type == "Cast"


@pytest.mark.parametrize("opset", module.OPSETS)
def test_supported_opsets_export_and_run(tmp_path: Path, opset: int) -> None:
    checkpoint = fresh_checkpoint(SMALL.model_copy(update={"depth": 1}))
    made = export_onnx(checkpoint, tmp_path / "m.onnx", opset=opset)
    assert made.opset == opset
    image = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(made.path).run(None, {"image": image})
    with torch.no_grad():
        expected = checkpoint.build_model()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("spatial_kernel", ["none", "dot"])
def test_other_spatial_kernels_export_too(tmp_path: Path, spatial_kernel: str) -> None:
    attention = AttentionConfig.model_validate({"spatial_kernel": spatial_kernel})
    checkpoint = fresh_checkpoint(SMALL.model_copy(update={"attention": attention}))
    made = export_onnx(checkpoint, tmp_path / "m.onnx")
    image = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(made.path).run(None, {"image": image})
    with torch.no_grad():
        expected = checkpoint.build_model()(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_large_weights_go_to_a_file_of_their_own(digits: Checkpoint, tmp_path: Path) -> None:
    large = export_onnx(shallow(digits), tmp_path / "big.onnx", external_data_bytes=1)
    assert {path.name for path in tmp_path.iterdir()} == {"big.onnx", "big.onnx.data"}
    assert large.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    image = np.zeros((1, 1, 8, 8), np.float32)
    answer = onnxruntime.InferenceSession(large.path).run(None, {"image": image})[0]
    assert answer.shape == (1, 10)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    digits: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="opset 26 is not supported"):
        export_onnx(digits, tmp_path / "m.onnx", opset=26)
    with pytest.raises(UserError, match="opset 20 has no bfloat16 convolution"):
        export_onnx(digits, tmp_path / "m.onnx", opset=20, precision="bf16")
    with pytest.raises(UserError, match="is a directory"):
        export_onnx(digits, tmp_path)
    assert list(tmp_path.iterdir()) == []


def damaged(source: Path, target: Path, change: str) -> Path:
    model = onnx.load(source)
    node = attention_nodes(model)[0]
    match change:
        case "no function":
            del model.functions[:]
        case "node gone":
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]
        case "no plugin attributes":
            kept = [a for a in node.attribute if not a.name.startswith("plugin")]
            del node.attribute[:]
            node.attribute.extend(kept)
        case "float64":
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1), "wide"))
        case "training":
            model.graph.node.append(
                onnx.helper.make_node("Dropout", ["logits"], ["dropped"], name="drop")
            )
    onnx.save(model, target)
    return target


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("no function", "has no function body"),
        ("node gone", "3 attention nodes, expected 4"),
        ("no plugin attributes", "has no plugin attributes"),
        ("float64", "wide is float64"),
        ("training", "drop is a training operator Dropout"),
    ],
)
def test_postconditions_catch_each_broken_promise(
    digits_onnx: Path, tmp_path: Path, change: str, complaint: str
) -> None:
    path = damaged(digits_onnx, tmp_path / "damaged.onnx", change)
    assert any(complaint in violation for violation in violations(path, attention_nodes=4))


def test_a_broken_promise_stops_the_export(digits_onnx: Path, tmp_path: Path) -> None:
    assert violations(digits_onnx, attention_nodes=4) == []
    path = damaged(digits_onnx, tmp_path / "damaged.onnx", "no function")
    with pytest.raises(PostconditionError, match=r"damaged\.onnx: .*no function body"):
        check_exported(path, attention_nodes=4)


def test_exporting_twice_gives_the_same_bytes(digits: Checkpoint, tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    export_onnx(shallow(digits), first)
    export_onnx(shallow(digits), second)
    assert first.read_bytes() == second.read_bytes()


def test_metadata_is_one_json_document(digits_onnx: Path) -> None:
    (entry,) = onnx.load(digits_onnx).metadata_props
    assert json.loads(entry.value)["schema_version"] == 1
