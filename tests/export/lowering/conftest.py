"""The digits model, exported once for the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.graph.export import export_onnx

CHECKPOINTS = Path("export/checkpoints")


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors")


@pytest.fixture(scope="session")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lowering") / "digits.onnx"
    export_onnx(checkpoint, path)
    return path
