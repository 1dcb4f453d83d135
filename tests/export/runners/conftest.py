from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx

CHECKPOINTS = Path(__file__).parents[3] / "export" / "checkpoints"


@pytest.fixture(scope="session")
def digits() -> Checkpoint:
    return load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors")


@pytest.fixture(scope="session")
def digits_onnx(digits: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(digits, tmp_path_factory.mktemp("onnx") / "digits.onnx").path
