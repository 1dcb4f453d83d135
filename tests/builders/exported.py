"""What is made once in a test run: ONNX files of the committed checkpoints; and shorter models."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bilateral_export.checkpoint.load import Checkpoint

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"


@contextlib.contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Yield a folder that the processes of pytest-xdist share; in the block it is one's alone."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared" / name
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def exported(name: str, factory: pytest.TempPathFactory, **options: Any) -> Path:
    """Return the ONNX file of `<name>.safetensors`, which no test may change.

    It is of float32 unless `options`, those of `export_onnx`, say otherwise. An export takes
    seconds, most of it torch's.
    """
    from bilateral_export.checkpoint.load import load_checkpoint
    from bilateral_export.graph.export import export_onnx

    which = "-".join((name, *(f"{key}={value}" for key, value in sorted(options.items()))))
    with shared_folder(factory, which) as folder:
        path = folder / f"{name.partition('_')[0]}.onnx"
        if not path.exists():
            export_onnx(load_checkpoint(CHECKPOINTS / f"{name}.safetensors"), path, **options)
    return path


def shallow(checkpoint: Checkpoint, depth: int = 1) -> Checkpoint:
    """Return a checkpoint's first blocks, where what is asked is the same of every block."""
    dropped = tuple(f"blocks.{n}." for n in range(depth, checkpoint.card.model.depth))
    state = {key: value for key, value in checkpoint.state.items() if not key.startswith(dropped)}
    model = checkpoint.card.model.model_copy(update={"depth": depth})
    card = checkpoint.card.model_copy(update={"model": model})
    return replace(checkpoint, card=card, state=state)
