"""Conversion of weights: what does not survive it is refused by name, what is normal is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.family import FamilyConfig
from bilateral_export.models.language import LanguageModelConfig
from bilateral_export.models.registry import build
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.precision import FLOAT32_NAMES, to_precision

BILATERAL = {
    "attention": AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
    "residual": ResidualConfig(learned=True),
}
IMAGE = ImageClassifierConfig(
    image_size=8, patch_size=4, channels=1, dim=8, depth=1, heads=2, num_classes=3, **BILATERAL
)
WORDS = LanguageModelConfig(
    vocabulary=12, context=4, dim=8, depth=1, heads=2, hidden=8, cutoffs=(6,), **BILATERAL
)


def checkpoint(config: FamilyConfig = IMAGE, **changes: torch.Tensor) -> Checkpoint:
    torch.manual_seed(0)
    state = build(config).state_dict() | changes
    return Checkpoint(Path("m.pth"), "0" * 64, CheckpointCard(name="m", model=config), state)


def named(config: FamilyConfig) -> list[str]:
    return [name for name, _ in build(config).named_parameters()]


@pytest.mark.parametrize(
    ("config", "name"),
    [(config, name) for config in (IMAGE, WORDS) for name in named(config)],
    ids=lambda value: value if isinstance(value, str) else value.family,
)
def test_a_value_out_of_range_anywhere_is_refused_by_name(config: FamilyConfig, name: str) -> None:
    """Every tensor: 1e5 in float16, 1e39 in float32, which also holds for the float32 islands."""
    generator = np.random.default_rng(len(name))
    for value, dtype in ((1e5, torch.float16), (-1e39, torch.float16), (1e39, torch.float32)):
        model = build(config).double()
        tensor = dict(model.named_parameters())[name].data
        tensor.view(-1)[int(generator.integers(tensor.numel()))] = value
        if abs(value) < 1e38 and name.rpartition(".")[2] in FLOAT32_NAMES:
            to_precision(model, dtype)
            continue
        with pytest.raises(UserError, match="tensor " + name) as refused:
            to_precision(model, dtype)
        assert f"{abs(value):.3g}" in str(refused.value)
        assert "bf16 or fp32" in str(refused.value) or abs(value) > 1e38


def test_an_export_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    big = torch.full((8, 8), 1e5)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.proj\.weight holds 1e\+05, and float16"):
        export_onnx(
            checkpoint(**{"blocks.0.attn.proj.weight": big}), tmp_path / "m", precision="fp16"
        )
    assert list(tmp_path.iterdir()) == []


class TestUnderflow:
    def test_single_weights_and_whole_biases_may_become_0(self) -> None:
        model = build(IMAGE)
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight[0] = 1e-12
            model.blocks[0].mlp.fc1.bias[:] = 1e-12
        converted = to_precision(model, torch.float16)
        assert not converted.blocks[0].mlp.fc1.bias.any()

    def test_a_residual_coefficient_may_not(self) -> None:
        model = build(IMAGE)
        with torch.no_grad():
            model.blocks[0].residual1.coefficients[2] = 1e-9
        with pytest.raises(UserError, match=r"residual1\.coefficients becomes 0 in float16"):
            to_precision(model, torch.float16)

    def test_nor_all_of_a_weight_matrix(self) -> None:
        model = build(IMAGE)
        with torch.no_grad():
            model.head.weight.mul_(1e-9)
        with pytest.raises(UserError, match=r"tensor head\.weight becomes 0 in float16"):
            to_precision(model, torch.float16)
        nn.init.zeros_(model.head.weight)  # as it was trained: nothing is lost
        to_precision(model, torch.float16)


class TestBandwidth:
    @pytest.mark.parametrize("log_bandwidth", [-45.0, -88.0, -200.0, -1e4])
    def test_one_that_underflows_is_refused(self, log_bandwidth: float, tmp_path: Path) -> None:
        sigmas = torch.tensor([0.0, log_bandwidth])
        with pytest.raises(UserError, match=r"blocks\.0\.attn\.log_bandwidth: exp\(.* infinite"):
            export_onnx(checkpoint(**{"blocks.0.attn.log_bandwidth": sigmas}), tmp_path / "m.onnx")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("log_bandwidth", [-43.0, -10.0, 80.0, 200.0])
    def test_the_smallest_and_the_infinite_compute(
        self, log_bandwidth: float, tmp_path: Path
    ) -> None:
        sigmas = torch.tensor([0.0, log_bandwidth])
        made = checkpoint(**{"blocks.0.attn.log_bandwidth": sigmas})
        path = export_onnx(made, tmp_path / "m.onnx").path
        image = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
        (logits,) = onnxruntime.InferenceSession(path).run(None, {"image": image})
        with torch.no_grad():
            exact = made.build_model().double()(torch.from_numpy(image).double()).numpy()
        np.testing.assert_allclose(logits, exact, atol=1e-5)
        assert math.isfinite(float(logits.sum()))
