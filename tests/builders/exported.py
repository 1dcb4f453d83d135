"""ONNX files of the committed checkpoints, each exported once in a test run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"


def exported(name: str, factory: pytest.TempPathFactory) -> Path:
    """Return the float32 ONNX file of `<name>.safetensors`, which no test may change.

    Processes of pytest-xdist share it: an export takes seconds, most of it torch's.
    """
    from bilateral_export.checkpoint.load import load_checkpoint
    from bilateral_export.graph.export import export_onnx

    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.partition('_')[0]}.onnx"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            export_onnx(load_checkpoint(CHECKPOINTS / f"{name}.safetensors"), path)
    return path
