"""Other ways to run the trained module: exported and compiled."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tests.builders.exported import shallow

from bilateral_export.checkpoint.load import Checkpoint
from bilateral_export.errors import UserError
from bilateral_export.runners.base import Runner
from bilateral_export.runners.torch_compiled import CompiledRunner
from bilateral_export.runners.torch_eager import TorchRunner
from bilateral_export.runners.torch_exported import ExportedRunner

GENERATOR = np.random.default_rng(0)


def _images(batch: int) -> dict[str, np.ndarray]:
    return {"image": GENERATOR.standard_normal((batch, 1, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exported_program_computes_what_the_module_does(
    digits: Checkpoint, dtype: torch.dtype
) -> None:
    with TorchRunner(digits, dtype) as eager, ExportedRunner(digits, dtype) as exported:
        assert isinstance(exported, Runner)
        for batch in (1, 2, 5):
            images = _images(batch)
            np.testing.assert_array_equal(
                exported.run(images)["logits"], eager.run(images)["logits"]
            )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_module_agrees_to_rounding(digits: Checkpoint) -> None:
    block = shallow(digits)
    with TorchRunner(block, torch.float64) as reference, CompiledRunner(block) as compiled:
        for batch in (2, 5):
            images = _images(batch)
            np.testing.assert_allclose(
                compiled.run(images)["logits"], reference.run(images)["logits"], atol=2e-5
            )


def test_without_a_compiler_the_compiled_runner_says_what_to_install(
    digits: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"Install g\+\+"):
        CompiledRunner(digits).__enter__()
