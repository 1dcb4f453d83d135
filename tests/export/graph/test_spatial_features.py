"""A model's Gaussian spatial kernels as features: the same model, where the rule allows it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from tests.builders.exported import shallow

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.graph.export import export_onnx
from bilateral_export.graph.spatial_features import use_spatial_features
from bilateral_export.parity.inputs.samples import random_samples

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "replaced"),
    [("digits_bilateral", 4), ("listops_bilateral", 3), ("pydoc_bilateral", 3)],
)
def test_the_trained_models_stay_what_they_are(name: str, replaced: int) -> None:
    """pydoc's narrowest kernel, sigma 0.93 of 128 tokens, is too narrow for features."""
    checkpoint = load_checkpoint(CHECKPOINTS / f"{name}.safetensors")
    before, after = (checkpoint.build_model().eval() for _ in range(2))
    assert use_spatial_features(after, torch.bfloat16) == replaced
    sample = random_samples(before, (2,))[0]
    given = [torch.from_numpy(array.copy()) for array in sample.arrays.values()]

    with torch.inference_mode():
        torch.testing.assert_close(after(*given), before(*given), atol=2e-3, rtol=1e-3)


def test_an_exported_model_carries_the_features(tmp_path: Path) -> None:
    checkpoint = shallow(load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors"))
    path = tmp_path / "digits.onnx"
    export_onnx(checkpoint, path, precision="fp16", spatial_features=True)

    nodes = [n for n in onnx.load(path).graph.node if n.op_type == "BilateralAttention"]
    kernels = {a.name: a.s for node in nodes for a in node.attribute}
    assert len(nodes) == 1
    assert kernels["spatial_kernel"] == b"dot"
