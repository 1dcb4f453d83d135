"""Plans that no TensorRT made, with manifests that fit them."""

from __future__ import annotations

from pathlib import Path

from bilateral_export.engine.plan.manifest import (
    AttentionRecord,
    PlanManifest,
    PluginRecord,
    RangeRecord,
    describe_file,
    manifest_path,
)
from bilateral_export.tensors import TensorSpec


def write_plan(
    path: Path,
    max_batch: int = 32,
    plugin: PluginRecord | None = None,
    version_compatible: bool = False,
) -> Path:
    """Some bytes with a manifest that says they take images and give logits."""
    path.write_bytes(b"ftrt" + bytes(2000))
    size = (3, 8, 8)
    shapes = RangeRecord(minimum=(1, *size), optimum=(1, *size), maximum=(max_batch, *size))
    manifest = PlanManifest(
        plan=describe_file(path),
        onnx=describe_file(path),
        plugin=plugin,
        library="tensorrt",
        version="10.14.1.48",
        targets=("sm_90",),
        version_compatible=version_compatible,
        precision="fp16",
        types={"fp16": 10},
        tf32=False,
        attention=AttentionRecord(nodes=2, path="plugin" if plugin else "function", fused=None),
        inputs=(TensorSpec(name="image", dtype="float32", shape=(-1, *size)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),),
        profiles=({"image": shapes},),
        max_batch=max_batch,
        built="2025-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    manifest_path(path).write_text(manifest.model_dump_json())
    return path


def plugin_record(library: Path, embedded: bool = False) -> PluginRecord:
    return PluginRecord(**describe_file(library).model_dump(), embedded=embedded, nodes=2)
