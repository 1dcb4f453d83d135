"""Every family's exported model through the plugin and through the function body: real builds.

A reduced set: small members, two GPUs in one plan. `python -m bilateral_export.engine.matrix` has
them all at their real sizes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_export.checkpoint.load import load_checkpoint
from bilateral_export.engine.build import build_plan
from bilateral_export.engine.library import load_library
from bilateral_export.engine.options import BuildOptions
from bilateral_export.graph.export import export_onnx
from bilateral_export.plugin import FILE_NAME

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("digits_bilateral", "fp32"),
        ("digits_bilateral", "fp16"),
        ("digits_bilateral", "bf16"),
        ("listops_bilateral", "fp16"),
        ("pydoc_bilateral", "bf16"),
    ],
)
def test_family(name: str, precision: str, plugin_build: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    library = load_library("tensorrt_rtx")
    onnx = tmp_path / "model.onnx"
    exported = export_onnx(
        load_checkpoint(CHECKPOINTS / f"{name}.safetensors"), onnx, precision=precision
    )
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
