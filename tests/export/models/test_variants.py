"""Every part an image classifier can have is exact in the file and in what it is lowered to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.formats.native import save_checkpoint
from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.lowering.lower import lower
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.classifier import ImageClassifierConfig
from bilateral_export.models.registry import build
from bilateral_export.models.residual import ResidualConfig
from bilateral_export.runners.onnxruntime_runner import OnnxRuntimeRunner
from bilateral_export.runners.openvino_runner import OpenVinoRunner

SIZES: dict[str, Any] = {
    "image_size": (32, 48),
    "patch_size": 8,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "num_classes": 5,
}
FEATURES: dict[str, Any] = {"num_classes": 0, "output": "tokens"}
PARTS: dict[str, dict[str, Any]] = {
    "layer scale, tanh GELU, epsilon": {
        "layer_scale": True,
        "activation": "gelu_tanh",
        "layer_norm_epsilon": 1e-3,
    },
    "registers, mean, fc_norm": {
        "registers": 3,
        "pooling": "mean",
        "fc_norm": True,
        "final_norm": False,
        "activation": "quick_gelu",
    },
    "no class token, qk_norm": {"class_token": False, "pooling": "mean", "qk_norm": True},
    "pre_norm, class and mean, silu": {
        "pre_norm": True,
        "pooling": "cls_mean",
        "activation": "silu",
    },
    "tokens": {"registers": 2, "layer_scale": True, **FEATURES},
    "class token alone": {**FEATURES, "output": "cls", "distilled": True, "activation": "relu"},
}
BILATERAL = {
    "attention": AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
    "residual": ResidualConfig(preset="standard", learned=True),
}


# With plain attention one, and one of features: attention knows nothing of the parts around it.
PLAIN = ("layer scale, tanh GELU, epsilon", "tokens")


@pytest.mark.parametrize(
    ("parts", "kernels"),
    [
        *((parts, "bilateral") for parts in PARTS),
        *(
            pytest.param(parts, "plain", marks=() if parts in PLAIN else pytest.mark.slow)
            for parts in PARTS
        ),
    ],
)
def test_a_part_is_exact_in_every_runtime_and_lowering(
    tmp_path: Path, parts: str, kernels: str
) -> None:
    torch.manual_seed(0)
    chosen = BILATERAL if kernels == "bilateral" else {}
    config = ImageClassifierConfig(**SIZES | PARTS[parts], **chosen)
    state = build(config).state_dict()
    for name, tensor in state.items():
        if not name.endswith("log_bandwidth"):  # what is zero or one at first would hide a fault
            tensor.add_(0.1 * torch.randn_like(tensor))
    checkpoint = tmp_path / "c.safetensors"
    save_checkpoint(checkpoint, state, CheckpointCard(name="parts", model=config))
    loaded = load_checkpoint(checkpoint)
    image = np.random.default_rng(0).standard_normal((3, 3, 32, 48)).astype(np.float32)
    with torch.no_grad():
        wanted = loaded.build_model().double()(torch.from_numpy(image).double()).numpy()

    plain = tmp_path / "plain.onnx"
    export_onnx(loaded, plain)
    answers = {}
    for name, runner in {
        "onnxruntime": OnnxRuntimeRunner(plain),
        "onnxruntime, lowered": OnnxRuntimeRunner(
            lower(plain, "onnxruntime-cpu", tmp_path / "ort.onnx").path
        ),
        "openvino, lowered": OpenVinoRunner(lower(plain, "openvino", tmp_path / "ov.onnx").path),
    }.items():
        with runner:
            (answers[name],) = runner.run({"image": image}).values()
    errors = {
        name: float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
        for name, got in answers.items()
    }
    assert all(error < 3e-6 for error in errors.values()), errors
