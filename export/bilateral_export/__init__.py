"""From a trained bilateral Transformer to a verified, deployable artifact.

Importing this package is cheap: torch and onnx are imported only by the modules that need them.
"""

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Nothing that is imported from here on, nor a process started from here, reports home. ONNX Runtime
# (from 1.29, on Linux too) would send the names and hashes of models; openvino reports its import,
# and needs a home directory for that, unless this package of its is missing.
os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

try:
    __version__ = version("bilateral-serve")
except PackageNotFoundError:  # a source tree that is on the path but not installed
    __version__ = "0.0.0+source"

# What a definition of a model of your own is written with (models/OWN.md), by its module.
_NAMES = {
    "BilateralAttention": "models.drop_in",
    "ImagePreprocessing": "preprocessing",
    "ModelDefinition": "models.definition",
    "TensorSpec": "tensors",
    "export_onnx": "graph.export",
    "grid_positions": "models.attention",
    "load_checkpoint": "checkpoint.load",
    "register_with_transformers": "models.drop_in",
    "replace_attention": "models.drop_in",
    "scaled_dot_product_attention": "models.drop_in",
}


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
