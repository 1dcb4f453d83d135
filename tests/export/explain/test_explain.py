"""Attention maps: true to the operator, the same from torch and a graph, drawn on the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.errors import UserError
from bilateral_export.explain.graph import OUTPUTS, explain_onnx, onnx_maps
from bilateral_export.explain.maps import KERNELS, AttentionMaps, rollout
from bilateral_export.explain.overlay import overlay, seen_image
from bilateral_export.explain.page import Subject, View, write_explanation
from bilateral_export.explain.torch_maps import torch_maps
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import lower
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner

DIGITS = Path(__file__).parents[3] / "export" / "checkpoints"
IMAGE = np.random.default_rng(0).standard_normal((3, 12, 12)).astype(np.float32)


def model_of(range_kernel: str, spatial_kernel: str, distilled: bool = False) -> Checkpoint:
    """A tiny classifier with wide random weights, so that no map is close to uniform."""
    config = ImageClassifierConfig(
        image_size=12,
        patch_size=3,
        dim=8,
        depth=2,
        heads=2,
        num_classes=5,
        distilled=distilled,
        attention=AttentionConfig(range_kernel=range_kernel, spatial_kernel=spatial_kernel),
    )
    torch.manual_seed(0)
    model = build(config)
    for name, parameter in model.named_parameters():
        if "qkv" in name or "features" in name:
            torch.nn.init.normal_(parameter)
    card = CheckpointCard(name="tiny", model=config)
    return Checkpoint(Path("unused"), sha256="0" * 64, card=card, state=model.state_dict())


def maps_by_torch(checkpoint: Checkpoint) -> AttentionMaps:
    config = checkpoint.card.model
    assert isinstance(config, ImageClassifierConfig)
    return torch_maps(checkpoint.build_model(), config, IMAGE)


@pytest.mark.parametrize("spatial_kernel", ["gaussian", "dot", "none"])
@pytest.mark.parametrize("range_kernel", ["gaussian", "dot"])
def test_attention_is_the_normalised_product_of_the_two_kernels(
    range_kernel: str, spatial_kernel: str
) -> None:
    maps = maps_by_torch(model_of(range_kernel, spatial_kernel))
    product = maps.range * maps.spatial
    product /= product.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(maps.attention, product, atol=1e-6)


def test_the_maps_are_the_weights_the_operator_averages_values_with() -> None:
    """Replacing the operator's output by map times value leaves the model's answer as it was."""
    checkpoint = model_of("gaussian", "gaussian")
    maps = maps_by_torch(checkpoint)
    model = checkpoint.build_model()
    attention = model.get_submodule("blocks.0.attn")
    seen: list[torch.Tensor] = []
    attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    attention.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model(torch.from_numpy(IMAGE)[None])
    tokens, output = seen
    value = attention.qkv(tokens).chunk(3, dim=-1)[2].view(1, -1, 2, 4).transpose(1, 2)  # type: ignore[operator]
    averaged = (torch.from_numpy(maps.attention[0])[None] @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.proj(averaged), output, atol=1e-5, rtol=0)  # type: ignore[operator]


@pytest.mark.parametrize("distilled", [False, True])
def test_prefix_tokens_have_no_place(distilled: bool) -> None:
    maps = maps_by_torch(model_of("gaussian", "gaussian", distilled))
    prefix = 2 if distilled else 1
    tokens = maps.spatial.shape[-1]
    np.testing.assert_allclose(maps.spatial[:, :, :prefix], 1 / tokens, rtol=1e-5)
    np.testing.assert_allclose(maps.attention[:, :, :prefix], maps.range[:, :, :prefix], atol=1e-6)


def test_a_patch_s_spatial_kernel_is_highest_at_its_own_place() -> None:
    maps = maps_by_torch(model_of("gaussian", "gaussian"))
    for row, column in [(0, 0), (1, 3), (2, 2)]:
        line = maps.on_grid(maps.spatial[0, 0, maps.token((row, column))])
        assert np.unravel_index(line.argmax(), line.shape) == (row, column)


@pytest.mark.parametrize(
    ("range_kernel", "spatial_kernel", "distilled"),
    [("gaussian", "dot", True), ("dot", "none", False)],
)
def test_a_graph_gives_the_maps_of_torch(
    tmp_path: Path, range_kernel: str, spatial_kernel: str, distilled: bool
) -> None:
    checkpoint = model_of(range_kernel, spatial_kernel, distilled)
    exported = export_onnx(checkpoint, tmp_path / "tiny.onnx")
    ours, theirs = maps_by_torch(checkpoint), onnx_maps(exported.path, IMAGE)
    for kernel in (*KERNELS, "logits"):
        np.testing.assert_allclose(
            getattr(theirs, kernel), getattr(ours, kernel), atol=3e-5, err_msg=kernel
        )
    assert (theirs.prefix, theirs.grid) == (ours.prefix, ours.grid) == (1 + distilled, (4, 4))


def test_maps_are_absent_from_the_production_graph_and_change_nothing_else(tmp_path: Path) -> None:
    checkpoint = model_of("gaussian", "gaussian")
    production = export_onnx(checkpoint, tmp_path / "tiny.onnx").path
    before = production.read_bytes()
    explained = tmp_path / "tiny.explain.onnx"
    explain_onnx(production, explained)
    same = onnx_maps(explained, IMAGE)
    np.testing.assert_allclose(same.attention, maps_by_torch(checkpoint).attention, atol=3e-5)
    np.testing.assert_allclose(same.spatial, maps_by_torch(checkpoint).spatial, atol=3e-5)
    assert production.read_bytes() == before
    assert {output.name for output in onnx.load(production).graph.output} == {"logits"}

    batch = np.stack([IMAGE, -IMAGE, IMAGE * 2])
    with OnnxRuntimeRunner(production) as plain, OnnxRuntimeRunner(explained) as runner:
        outputs = runner.run({"image": batch})
        assert list(outputs) == ["logits", *OUTPUTS]
        np.testing.assert_array_equal(outputs["logits"], plain.run({"image": batch})["logits"])
    assert outputs["attention_maps"].shape == (3, 2, 2, 17, 17)
    np.testing.assert_allclose(outputs["range_maps"].sum(-1), 1, atol=1e-5)
    nodes = {node.op_type for node in onnx.load(production).graph.node}
    assert {node.op_type for node in onnx.load(explained).graph.node} - nodes <= {
        "AttentionMaps",
        "Unsqueeze",
        "Concat",
    }


def test_a_half_precision_graph_and_external_weights_do_too(tmp_path: Path) -> None:
    checkpoint = model_of("gaussian", "gaussian")
    path = tmp_path / "tiny.onnx"
    export_onnx(checkpoint, path, precision="fp16", external_data_bytes=0)
    explain_onnx(path, tmp_path / "tiny.explain.onnx")
    assert (tmp_path / "tiny.explain.onnx.data").exists()
    maps = onnx_maps(tmp_path / "tiny.explain.onnx", IMAGE)
    np.testing.assert_allclose(maps.attention, maps_by_torch(checkpoint).attention, atol=0.02)


def test_rollout_of_attention_to_oneself_stays_and_of_uniform_attention_spreads() -> None:
    tokens, layers = 5, 3
    own = np.broadcast_to(np.eye(tokens, dtype=np.float32), (layers, 2, tokens, tokens))
    np.testing.assert_allclose(rollout(own), np.eye(tokens))
    uniform = np.full((layers, 2, tokens, tokens), 1 / tokens, dtype=np.float32)
    expected = np.eye(tokens) / 2**layers + (1 - 1 / 2**layers) / tokens
    np.testing.assert_allclose(rollout(uniform), expected, rtol=1e-5)


def test_an_overlay_is_bright_where_the_weight_is() -> None:
    weights = np.zeros((4, 4), dtype=np.float32)
    weights[1, 2] = 0.3
    black = Image.new("RGB", (8, 8))
    light = np.asarray(overlay(black, weights, side=64, smooth=False)).sum(axis=-1)
    bright = light > light.mean()
    assert bright[16:32, 32:48].all()
    assert bright.sum() == 16 * 16


def test_the_seen_image_is_the_input_without_its_normalisation() -> None:
    preprocessing = load_checkpoint(DIGITS / "digits_plain.safetensors").card.preprocessing
    pixels = np.asarray(Image.open(DIGITS / "digits" / "3-0.png"))
    tensor = ((pixels[None] / 255 - 0.3) / 0.35).astype(np.float32)
    seen = np.asarray(seen_image(tensor, preprocessing))
    np.testing.assert_array_equal(seen, np.stack([pixels] * 3, axis=-1))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(
        model="tiny <b>",
        runtime="PyTorch",
        image_name="noise.png",
        tensor=IMAGE,
        preprocessing=None,
        labels=[f"name {index}" for index in range(5)],
        maps=maps_by_torch(model_of("gaussian", "gaussian")),
    )


def test_the_page_stands_alone_and_has_a_picture_of_every_head_and_kernel(
    subject: Subject, tmp_path: Path
) -> None:
    write_explanation(subject, View(), tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    best = int(subject.maps.logits.argmax())
    assert f"name {best}" in page
    assert "tiny &lt;b&gt;" in page
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 2 + 3 * (1 + 2) + 3
    assert len(list((tmp_path / "out").glob("*.png"))) == 3 * (1 + 2) + 3
    assert Image.open(tmp_path / "out" / "layer_range_head1.png").size == (224, 224)


def test_averaged_only_and_a_patch(subject: Subject, tmp_path: Path) -> None:
    write_explanation(subject, View(layer=0, patch=(3, 1), heads=False), tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Layer 0 of 0 to 1: where patch 3,1 looks" in page
    picture = np.asarray(Image.open(tmp_path / "out" / "layer_range.png"))
    # The patch that looks is framed: 4 patches along 224 pixels, row 3, column 1.
    assert (picture[168, 56:112] == 255).all()
    assert (picture[168:224, 111] == 255).all()
    assert len(list((tmp_path / "out").glob("*.png"))) == 3 + 3


@pytest.mark.parametrize(
    ("view", "problem"),
    [
        (View(layer=2), "there is no layer 2"),
        (View(layer=-3), "there is no layer -3"),
        (View(patch=(4, 0)), "there is no patch 4,0. Rows go from 0 to 3"),
    ],
)
def test_what_does_not_exist_is_refused_and_leaves_nothing(
    subject: Subject, tmp_path: Path, view: View, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        write_explanation(subject, view, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"not a model")
    with pytest.raises(UserError, match="is not an ONNX model"):
        onnx_maps(tmp_path / "noise.onnx", IMAGE)


def test_a_lowered_file_has_no_maps(tmp_path: Path) -> None:
    source, lowered = tmp_path / "tiny.onnx", tmp_path / "lowered.onnx"
    export_onnx(model_of("gaussian", "gaussian"), source)
    lower(source, "onnxruntime-cpu", lowered)
    with pytest.raises(UserError, match="has no attention node: it was lowered"):
        onnx_maps(lowered, IMAGE)


def test_a_plain_model_has_a_uniform_spatial_kernel() -> None:
    maps = maps_by_torch(model_of("dot", "none"))
    np.testing.assert_allclose(maps.spatial, 1 / maps.spatial.shape[-1], rtol=1e-6)
