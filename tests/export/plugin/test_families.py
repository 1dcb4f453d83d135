"""Every family in every precision, through the plugin and through the function body: real builds.

Small members of the families, two GPUs in one plan. studies/build_matrix.py has their real sizes
and more GPUs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bilateral_export.checkpoint.card import CheckpointCard
from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.installation.library import load_library
from bilateral_export.engine.installation.plugin import FILE_NAME
from bilateral_export.engine.options import BuildOptions
from bilateral_export.graph.export import export_onnx
from bilateral_export.models.attention import AttentionConfig
from bilateral_export.models.registry import build, named
from bilateral_export.models.segmenter import SegmenterConfig

FAMILIES = {
    config.family: config
    for config in (
        named("digits_bilateral").model_copy(update={"depth": 1}),
        named("listops_bilateral").model_copy(update={"depth": 1, "length": 32}),
        named("pydoc_bilateral").model_copy(update={"depth": 1, "context": 32}),
        SegmenterConfig(
            image_size=32,
            patch_size=8,
            dim=48,
            depth=1,
            decoder_depth=1,
            num_classes=4,
            attention=AttentionConfig(range_kernel="gaussian", spatial_kernel="gaussian"),
        ),
    )
}
# The rest is of the slow tests: a precision means the same in every family.
QUICK = {
    "image-classifier": ("fp32", "fp16", "bf16"),
    "sequence-classifier": ("fp16",),
    "language-model": ("bf16",),
    "segmenter": ("fp32",),
}


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        pytest.param(
            family,
            precision,
            marks=() if precision in QUICK[family] else pytest.mark.slow,
        )
        for family in FAMILIES
        for precision in ("fp32", "fp16", "bf16")
    ],
)
def test_family(family: str, precision: str, plugin_build: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    library = load_library("tensorrt_rtx")
    torch.manual_seed(0)
    config = FAMILIES[family]
    card = CheckpointCard(name=family, model=config)
    checkpoint = Checkpoint(tmp_path / family, "0" * 64, card, dict(build(config).state_dict()))
    onnx = tmp_path / "model.onnx"
    exported = export_onnx(checkpoint, onnx, precision=precision)
    options = {
        "plugin": BuildOptions(targets=(86, 120), plugin=plugin_build / FILE_NAME),
        "function": BuildOptions(targets=(86, 120), attention="function"),
    }
    for path, chosen in options.items():
        manifest = build_plan(onnx, tmp_path / f"{path}.plan", chosen, library=library)
        assert manifest.precision == precision
        assert manifest.attention.path == path
        assert manifest.attention.nodes == exported.attention_nodes
        if path == "plugin":
            assert manifest.plugin is not None
            assert manifest.plugin.nodes == exported.attention_nodes
        else:
            fused = exported.attention_nodes if precision != "fp32" else 0
            assert manifest.attention.fused == fused
