"""The committed checkpoints and what is made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.builders.attention_graphs import attention_model
from tests.builders.exported import exported

from bilateral_export.checkpoint.load import Checkpoint, load_checkpoint
from bilateral_export.op.contract import OperatorVariant
from bilateral_export.tensors import Array

CHECKPOINTS = Path(__file__).parents[2] / "export" / "checkpoints"


@pytest.fixture(scope="session")
def digits() -> Checkpoint:
    return load_checkpoint(CHECKPOINTS / "digits_bilateral.safetensors")


@pytest.fixture(scope="session")
def digits_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("digits_bilateral", tmp_path_factory)


@pytest.fixture(scope="session")
def deeper_digits(digits: Checkpoint) -> Checkpoint:
    """The digits model with its blocks three times, for which a token-major layout is worth it."""
    model = digits.card.model.model_copy(update={"depth": 12})
    state = {**digits.state}
    for name, tensor in digits.state.items():
        if name.startswith("blocks."):
            _, block, rest = name.split(".", 2)
            state |= {f"blocks.{int(block) + 4 * i}.{rest}": tensor for i in (1, 2)}
    return replace(digits, card=digits.card.model_copy(update={"model": model}), state=state)


@pytest.fixture(scope="session")
def heldout() -> tuple[Array, Array]:
    """Preprocessed held-out images `[360, 1, 8, 8]` float32, and their classes."""
    with np.load(CHECKPOINTS / "digits_heldout.npz") as file:
        images = ((file["images"][:, None] / 255 - 0.3) / 0.35).astype(np.float32)
        return images, file["labels"]


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes `attention_model(...)` to a file and returns its path."""

    def make(
        *configurations: OperatorVariant,
        precision: str = "fp32",
        name: str = "model",
        **options: bool,
    ) -> Path:
        path = tmp_path / f"{name}.onnx"
        onnx.save(
            attention_model(configurations or (OperatorVariant(),), precision, **options), path
        )
        return path

    return make
